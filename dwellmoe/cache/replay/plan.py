"""Decoding speed of a device for each memory budget of a hit-rate curve.

The model is a floor: a token reads every weight it uses from memory once, and first fetches what the cache
misses. Computation is taken to keep up with memory; nothing overlaps.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from dwellmoe.cache.device import GIGA, DeviceProfile
from dwellmoe.cache.replay.rows import HitRateRow
from dwellmoe.cache.trace import DECODE, RoutingTrace
from dwellmoe.errors import UserError


@dataclass(frozen=True)
class PlanRow:
    """Memory in all and decoded tokens a second with a cache of one hit-rate row."""

    policy: str
    capacity: int
    capacity_bytes: int
    capacity_percent: float
    hit_rate: float
    miss_bytes_per_token: float
    memory_bytes: int
    tokens_per_second: float
    fits: bool  # into the memory of the device

    def as_dict(self) -> dict[str, Any]:
        """The row as one JSON object."""
        return dict(vars(self))


@dataclass(frozen=True)
class Plan:
    """A row for each hit-rate row; `smallest`: for each policy the row with the least memory that reaches the
    target and fits, no row where none does, None without a target.
    """

    device: DeviceProfile
    resident_bytes: int
    rows: list[PlanRow]
    target_tokens_per_second: float | None
    smallest: list[PlanRow] | None

    def as_dict(self) -> dict[str, Any]:
        """The plan as one JSON object."""
        found: dict[str, Any] = {"device": asdict(self.device), "resident_bytes": self.resident_bytes}
        found["plan"] = [row.as_dict() for row in self.rows]
        if self.smallest is not None:
            found["target_tokens_per_second"] = self.target_tokens_per_second
            found["smallest"] = [row.as_dict() for row in self.smallest]
        return found


def plan(
    trace: RoutingTrace,
    device: DeviceProfile,
    rows: Sequence[HitRateRow],
    resident_bytes: int,
    tokens_per_second: float | None = None,
) -> Plan:
    """What each hit-rate row means on a device, and the least memory that reaches a speed.

    `resident_bytes`: what is always in memory beside routed experts (attention, shared experts, embeddings,
    KV cache). UserError for a trace without `expert_bytes` and for a speed that is not above 0.
    """
    if tokens_per_second is not None and not 0 < tokens_per_second < float("inf"):
        raise UserError(f"tokens_per_second must be a number above 0, got {tokens_per_second}")
    if min(trace.expert_bytes) <= 0:
        raise UserError("a plan needs a trace with expert_bytes, the size of one expert of each layer")
    planned = [_plan_row(trace, device, row, resident_bytes) for row in rows]
    target = None if tokens_per_second is None else _smallest(planned, tokens_per_second)
    return Plan(device, resident_bytes, planned, tokens_per_second, target)


def _plan_row(trace: RoutingTrace, device: DeviceProfile, row: HitRateRow, resident_bytes: int) -> PlanRow:
    assert row.capacity_bytes is not None and row.miss_bytes_per_token is not None
    memory_bytes = resident_bytes + row.capacity_bytes
    read_bytes = resident_bytes + trace.top_k * sum(trace.expert_bytes)
    misses = row.misses / int((trace.phase == DECODE).sum())
    seconds = device.seconds_per_token(read_bytes, trace.layers, row.miss_bytes_per_token, misses)
    return PlanRow(
        policy=row.policy,
        capacity=row.capacity,
        capacity_bytes=row.capacity_bytes,
        capacity_percent=row.capacity_percent,
        hit_rate=row.hit_rate,
        miss_bytes_per_token=row.miss_bytes_per_token,
        memory_bytes=memory_bytes,
        tokens_per_second=1 / seconds,
        fits=device.memory_gb is None or memory_bytes <= device.memory_gb * GIGA,
    )


def _smallest(rows: Sequence[PlanRow], tokens_per_second: float) -> list[PlanRow]:
    """For each policy the row with the least memory that reaches a speed and fits; no row where none does."""
    found: dict[str, PlanRow] = {}
    for row in sorted(rows, key=lambda row: row.memory_bytes):
        if row.fits and row.tokens_per_second >= tokens_per_second:
            found.setdefault(row.policy, row)
    return list(found.values())


def plan_lines(found: Plan) -> list[str]:
    """The plan as a table, one line a row."""
    lines = [
        f"{row.policy:<18}{row.capacity:5d} slots a layer {row.memory_bytes / GIGA:9.3f} GB"
        f"{row.tokens_per_second:10.2f} tokens/s{'' if row.fits else '   does not fit'}"
        for row in found.rows
    ]
    if found.smallest is not None:
        target = f"{found.target_tokens_per_second:g} tokens/s"
        lines += [
            f"least memory for {target}, {row.policy}: {row.memory_bytes / GIGA:.3f} GB "
            f"({row.capacity} slots a layer)"
            for row in found.smallest
        ] or [f"no budget that fits reaches {target} on this device"]
    return lines
