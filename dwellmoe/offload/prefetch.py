"""Prefetch: begins to read experts that the next request needs, or that a predictor expects in it.

A prefetched expert lies in a slot of its own and in no cache: a request that needs it loads it as it would
any other, only with less waiting.
"""

from collections.abc import Sequence

from dwellmoe.cache.flat_id import FlatId
from dwellmoe.offload.io.readers import Load, Readers
from dwellmoe.offload.prefetch_predictors import PrefetchPredictor
from dwellmoe.offload.slot_table import ABSENT, SlotTable
from dwellmoe.offload.statistics import Statistics


class Prefetch:
    """Reads at most `budget` experts at a time. An expert that was read for nothing is not prefetched again
    until a request needs it.
    """

    def __init__(
        self,
        slot_table: SlotTable,
        readers: Readers,
        predictor: PrefetchPredictor,
        budget: int,
        statistics: Statistics,
    ) -> None:
        self.slot_table, self.readers, self.predictor = slot_table, readers, predictor
        self.budget, self.statistics = budget, statistics
        self._prefetched: set[FlatId] = set()
        self._wasted: set[FlatId] = set()

    def after_request(self, layer: int, requested: Sequence[int]) -> None:
        """Cancels the prefetches that `layer` did not claim, and begins those of the next layer."""
        if self._prefetched:
            self.cancel_all()
        if predicted := self.predictor.predict_next(layer, requested):
            self._read(self._flat_ids(layer + 1, predicted))

    def before_request(self, layer: int, needed: Sequence[int]) -> None:
        """Begins to read experts that another request of `layer` will need for certain."""
        if self._prefetched:
            self.cancel_all()
        flat_ids = self._flat_ids(layer, needed)
        self._wasted.difference_update(flat_ids)
        self._read(self.slot_table.in_file_order(flat_ids))

    def _flat_ids(self, layer: int, experts: Sequence[int]) -> list[FlatId]:
        first = layer * self.slot_table.experts
        return [FlatId(first + expert) for expert in experts]

    def _read(self, flat_ids: Sequence[FlatId]) -> None:
        """Begins to read the first of these experts that are neither present nor loading; not urgent."""
        self.slot_table.reclaim()
        started = []
        for flat_id in flat_ids:
            if len(self._prefetched) + len(self.slot_table.loads.cancelled) == self.budget:
                break
            if flat_id in self._wasted or self._is_near(flat_id):
                continue
            load = self.slot_table.start(flat_id)
            if load is None:
                break
            self._prefetched.add(flat_id)
            started.append(load)
        if started:
            self.statistics.prefetch_issued += len(started)
            self.readers.submit(started, urgent=False)

    def _is_near(self, flat_id: FlatId) -> bool:
        table = self.slot_table
        return (
            table.slot_of[flat_id] != ABSENT or flat_id in table.ram_slot_of or flat_id in table.loads.pending
        )

    def claim(self, flat_id: FlatId) -> Load | None:
        """The prefetch of a requested expert, which is part of the request from now on; None if there was
        none. It is urgent once it is submitted again.
        """
        self._wasted.discard(flat_id)
        if flat_id not in self._prefetched:
            return None
        self._prefetched.discard(flat_id)
        load = self.slot_table.loads.pending[flat_id].load
        if load.arrived.is_set():
            # An earlier request that waited may have taken its arrival and passed over it.
            self.slot_table.loads.arrivals.put(load)
        return load

    def cancel_all(self) -> None:
        """Cancels the prefetches that were not claimed."""
        for flat_id in sorted(self._prefetched):
            nbytes = self.slot_table.loads.pending[flat_id].load.nbytes
            if self.slot_table.cancel(flat_id):
                self._wasted.add(flat_id)
                self.statistics.prefetch_wasted += 1
                self.statistics.prefetch_wasted_bytes += nbytes
            else:
                self.statistics.prefetch_cancelled += 1
        self._prefetched.clear()

    def forget(self) -> None:
        """The slot table has abandoned all loads."""
        self._prefetched.clear()
