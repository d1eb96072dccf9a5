"""The size of an expert cache: slots, bytes and percent of a model's experts, converted into each other."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np

from dwellmoe.errors import UserError

UNITS = {"B": 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30, "KB": 10**3, "MB": 10**6, "GB": 10**9}
MOST_BYTES = 1e18  # a number above is a slip, or not a number


class Sizes(Protocol):
    """What a budget is a share of: a routing trace, or anything else with a number of experts."""

    @property
    def layers(self) -> int: ...
    @property
    def num_experts(self) -> int: ...
    @property
    def expert_bytes(self) -> Sequence[int]: ...


class TraceSizes(Sizes, Protocol):
    """`Sizes`, and the experts that a token needs."""

    @property
    def top_k(self) -> int: ...


class ModelSizes(NamedTuple):
    """`Sizes` in plain numbers; bytes of 0 are unknown."""

    layers: int
    num_experts: int
    expert_bytes: tuple[int, ...]


@dataclass(frozen=True)
class Budget:
    """The size of a cache in three units. `capacity` is slots a layer (scope "layer") or in all ("global");
    `capacity_bytes` is None where the size of an expert is unknown.
    """

    scope: str
    capacity: int
    capacity_bytes: int | None
    capacity_percent: float
    limits: tuple[int, ...]  # of each cache, in the unit of `sizes`
    sizes: np.ndarray  # int64 [experts of a cache]: 1 a slot, or bytes

    def fields(self) -> dict[str, float | int | None]:
        """The size as JSON fields."""
        names = ("capacity", "capacity_bytes", "capacity_percent")
        return {name: getattr(self, name) for name in names}


def budget_of(trace: Sizes, scope: str, capacity: int | str) -> Budget:
    """`capacity`: slots (8), percent of all routed experts ("25%"), or bytes ("6GiB").

    Slots are all of one size: a global cache of slots must be able to hold the largest expert in each. Bytes
    are kept to the byte in a global cache; with a cache a layer they are shared out as equal slots.
    """
    if isinstance(capacity, str) and not is_whole(capacity):
        number, unit = _parse_capacity(capacity)
        if unit != "%":
            return _of_bytes(trace, scope, int(number * UNITS[unit]))
        capacity = _share(number, _all_slots(trace, scope))
    return _of_slots(trace, scope, int(capacity))


def layer_slots(trace: TraceSizes, capacity: int | str) -> int:
    """Slots of each layer's cache: `capacity` as in `budget_of`, but at least the K experts of one token."""
    if isinstance(capacity, str) and capacity.endswith("%"):
        percent, _ = _parse_capacity(capacity)
        return max(_share(percent, trace.num_experts), trace.top_k)
    return max(budget_of(trace, "layer", capacity).capacity, trace.top_k)


def _share(percent: float, slots: int) -> int:
    return int(percent / 100 * slots + 1e-9)


def check_capacity(text: str) -> None:
    """UserError unless `text` is written as a capacity above 0: slots, percent or bytes."""
    number = int(text) if is_whole(text) else _parse_capacity(text)[0]
    if not number > 0:
        raise UserError(f"capacity '{text[:40]}': must be above 0")


def is_whole(text: str) -> bool:
    """Whether a text is a whole number, in plain digits of which a message can hold all."""
    return text.isascii() and text.isdecimal() and len(text) <= 40


def check_holds(slots: int, requested: int) -> None:
    """UserError unless a cache of `slots` holds the experts that one step requests at once."""
    if slots < requested:
        raise too_small(slots, requested, "one step")


def too_small(slots: int, requested: int, where: str) -> UserError:
    """The error of a request that no eviction can make room for."""
    return UserError(
        f"capacity {slots} is below the {requested} experts that {where} needs at once: raise it, "
        f"run prefill in smaller chunks, or use access 'sequential'"
    )


def parse_bytes(text: str, name: str) -> int:
    """ "6GiB" -> bytes. UserError names the setting for anything but a number and a unit."""
    number, unit = _split(text, name, "")
    return int(number * UNITS[unit])


def _parse_capacity(text: str) -> tuple[float, str]:
    return _split(text, "capacity", "slots (8), percent (25%) or ")


def _split(text: str, name: str, other_units: str) -> tuple[float, str]:
    digits = text.rstrip("%BKMGi ")
    unit = text[len(digits) :].strip()
    try:
        number = float(digits) if digits.isascii() and "_" not in digits else -1.0
    except ValueError:
        number = -1.0
    known = {**UNITS, "%": 1} if other_units else UNITS
    if not 0 <= number < MOST_BYTES or unit not in known or (unit == "%" and number > 100):
        raise UserError(f"{name} '{text[:40]}': give {other_units}bytes with a unit: {', '.join(UNITS)}")
    return number, unit


def _all_slots(trace: Sizes, scope: str) -> int:
    return trace.num_experts * (1 if scope == "layer" else trace.layers)


def _of_slots(trace: Sizes, scope: str, slots: int) -> Budget:
    most = _all_slots(trace, scope)
    caches = trace.layers if scope == "layer" else 1
    if not 1 <= slots <= most:
        raise UserError(f"capacity must be 1 to {most} experts with scope {scope}, got {slots}")
    slot_bytes = sum(trace.expert_bytes) if scope == "layer" else max(trace.expert_bytes)
    known = slots * slot_bytes if min(trace.expert_bytes) > 0 else None
    return Budget(
        scope=scope,
        capacity=slots,
        capacity_bytes=known,
        capacity_percent=100 * slots / most,
        limits=(slots,) * caches,
        sizes=np.ones(most, np.int64),
    )


def _of_bytes(trace: Sizes, scope: str, budget_bytes: int) -> Budget:
    if min(trace.expert_bytes) <= 0:
        raise UserError(
            "a capacity in bytes needs a trace with expert_bytes, the size of one expert of each layer"
        )
    if scope == "layer":
        return _of_slots(trace, scope, min(trace.num_experts, budget_bytes // sum(trace.expert_bytes)))
    all_bytes = sum(trace.expert_bytes) * trace.num_experts
    sizes = np.repeat(np.array(trace.expert_bytes, np.int64), trace.num_experts)
    slots = min(len(sizes), budget_bytes // max(trace.expert_bytes))
    return Budget(
        scope=scope,
        capacity=slots,
        capacity_bytes=budget_bytes,
        capacity_percent=min(100.0, 100 * budget_bytes / all_bytes),
        limits=(budget_bytes,),
        sizes=sizes,
    )
