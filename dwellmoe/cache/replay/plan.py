"""Decoding speed of a device for each memory budget of a hit-rate curve.

The model is a floor: a token reads every weight it uses from memory once, and first fetches what the cache
misses. Computation is taken to keep up with memory; nothing overlaps.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from dwellmoe.cache.budget import ModelSizes
from dwellmoe.cache.device import GIGA, DeviceProfile
from dwellmoe.cache.policies.base import parse_policy
from dwellmoe.cache.replay.rows import HitRateRow
from dwellmoe.cache.trace import DECODE, RoutingTrace
from dwellmoe.errors import UserError

HEADING = "policy            experts a layer       memory  hit rate  missed a token    tokens/s"


@dataclass(frozen=True)
class PlanRow:
    """Memory in all and decoded tokens a second with a cache of one hit-rate row."""

    policy: str
    capacity: int
    capacity_bytes: int
    capacity_percent: float
    hit_rate: float
    misses_per_token: float
    miss_bytes_per_token: float
    memory_bytes: int
    tokens_per_second: float
    fits: bool  # into the memory of the device

    def as_dict(self) -> dict[str, Any]:
        """The row as one JSON object."""
        return dict(vars(self))


@dataclass(frozen=True)
class Plan:
    """A row for each hit-rate row.

    `largest`: for each policy the row with the most memory that fits, no row where none does; `smallest`: the
    one with the least memory that reaches the target and fits, None without a target.
    """

    device: DeviceProfile
    sizes: ModelSizes
    resident_bytes: int
    rows: list[PlanRow]
    largest: list[PlanRow]
    target_tokens_per_second: float | None
    smallest: list[PlanRow] | None

    def as_dict(self) -> dict[str, Any]:
        """The plan as one JSON object."""
        found: dict[str, Any] = {"device": asdict(self.device), "resident_bytes": self.resident_bytes}
        found["plan"] = [row.as_dict() for row in self.rows]
        found["largest"] = [row.as_dict() for row in self.largest]
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
    check_sizes(trace)
    planned = [_plan_row(trace, device, row, resident_bytes) for row in rows]
    fitting = sorted((row for row in planned if row.fits), key=lambda row: row.memory_bytes)
    fast = [row for row in fitting if row.tokens_per_second >= (tokens_per_second or 0)]
    largest_first = sorted(fitting, key=lambda row: -row.memory_bytes)
    return Plan(
        device=device,
        sizes=ModelSizes(trace.layers, trace.num_experts, tuple(trace.expert_bytes)),
        resident_bytes=resident_bytes,
        rows=planned,
        largest=_first_of_each_policy(largest_first),
        target_tokens_per_second=tokens_per_second,
        smallest=None if tokens_per_second is None else _first_of_each_policy(fast),
    )


def check_sizes(trace: RoutingTrace) -> None:
    """UserError for a trace that does not state the size of an expert."""
    if min(trace.expert_bytes) <= 0:
        raise UserError("a plan needs a trace with expert_bytes, the size of one expert of each layer")


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
        misses_per_token=misses,
        miss_bytes_per_token=row.miss_bytes_per_token,
        memory_bytes=memory_bytes,
        tokens_per_second=1 / seconds,
        fits=device.memory_gb is None or memory_bytes <= device.memory_gb * GIGA,
    )


def _first_of_each_policy(rows: Sequence[PlanRow]) -> list[PlanRow]:
    found: dict[str, PlanRow] = {}
    for row in rows:
        found.setdefault(row.policy, row)
    return list(found.values())


def plan_lines(found: Plan) -> list[str]:
    """The plan for people: what it is about, a table with one line a row, and the answer in words."""
    sizes = found.sizes
    lines = [
        f"{found.device.name}: {sizes.layers} layers x {sizes.num_experts} experts of "
        f"{sum(sizes.expert_bytes) / sizes.layers / 1e6:.2f} MB; {found.resident_bytes / GIGA:.3f} GB always "
        "in memory, without a KV cache; speeds are upper bounds",
        HEADING,
    ]
    lines += [
        f"{row.policy:<18}{row.capacity:15d}{row.memory_bytes / GIGA:10.3f} GB{row.hit_rate:10.4f}"
        f"{row.miss_bytes_per_token / 1e6:13.2f} MB{row.tokens_per_second:12.2f}"
        f"{'' if row.fits else '   does not fit'}"
        for row in found.rows
    ]
    lines += _answers(found)
    if found.smallest is not None:
        target = f"{found.target_tokens_per_second:g} tokens/s"
        lines += [
            f"least memory for {target}, {row.policy}: {row.memory_bytes / GIGA:.3f} GB "
            f"({row.capacity} experts a layer)"
            for row in found.smallest
        ] or [f"no budget that fits reaches {target} on this device"]
    return lines


def _answers(found: Plan) -> list[str]:
    """How many experts fit into the device's memory, and what to expect then."""
    memory_gb = found.device.memory_gb
    room = "without a limit of memory" if memory_gb is None else f"with {memory_gb:g} GB"
    if not found.largest:
        least = min(row.memory_bytes for row in found.rows)
        return [f"{room} none of these sizes fits: the smallest takes {least / GIGA:.3f} GB"]
    if any(row.capacity == found.sizes.num_experts for row in found.largest):
        return [
            f"{room}, all {found.sizes.num_experts} experts a layer fit: each is fetched once, at its first "
            "use, and none again; what the table calls missed then are these first uses"
        ]
    return [
        f"{room}, {row.capacity} of {found.sizes.num_experts} experts a layer fit: expect "
        f"{row.misses_per_token:.2f} misses a token with {row.policy}{_bound(row)}, "
        f"{row.miss_bytes_per_token / 1e6:.2f} MB, about {row.tokens_per_second:.2f} tokens/s"
        for row in found.largest
    ]


def _bound(row: PlanRow) -> str:
    return "" if parse_policy(row.policy)[0].lookahead == "none" else " (which knows the future: a bound)"
