"""What a request to a cache moves between device, RAM and disk."""

from collections.abc import Sequence
from typing import NamedTuple

from dwellmoe.cache.flat_id import FlatId


class TransferPlan(NamedTuple):
    """What one request found and what it moves; experts are named by flat id.

    An expert of `load` comes from RAM where it is in `promote`, else from disk. An expert of `evict` goes to
    RAM where it is in `demote`, else it is forgotten: disk holds every expert, nothing is written back.
    """

    hits: int = 0
    """Requested experts that were on the device."""
    load: Sequence[FlatId] = ()
    """Come to the device, in router order."""
    evict: Sequence[FlatId] = ()
    """Leave the device, in order, before the loads come in."""
    promote: Sequence[FlatId] = ()
    """Those of `load` that are in RAM and leave it."""
    demote: Sequence[FlatId] = ()
    """Those of `evict` that go to RAM."""
    drop: Sequence[FlatId] = ()
    """Leave RAM for good."""
