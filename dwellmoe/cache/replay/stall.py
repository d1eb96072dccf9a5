"""How long decoding waits for experts over device, RAM and disk, under a tier policy.

An expert on the device costs nothing, one in RAM a copy, one on disk a read and a copy, one after the other.
What is prefetched moves only while layers compute, so that it delays nothing; a request for an expert under
way waits for the rest of its transfer.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil
from typing import Any

import numpy as np

from dwellmoe.cache.access import passes_of
from dwellmoe.cache.device import DeviceProfile
from dwellmoe.cache.flat_id import FlatId, flat_id, layer_and_expert
from dwellmoe.cache.memory import check_memory
from dwellmoe.cache.progress import Progress
from dwellmoe.cache.tiers.tier_policy import (
    PREFETCHING,
    RAM_ONLY,
    TierBudget,
    TierPolicy,
    make_tier_policy,
)
from dwellmoe.cache.tiers.watermark.watermark_cache import Prefetched, WatermarkCache
from dwellmoe.cache.trace import EMPTY, RoutingTrace
from dwellmoe.cache.transfer_plan import TransferPlan
from dwellmoe.errors import UserError

STATE_BYTES = 400  # for each expert of each layer, in plain Python objects


@dataclass
class StallCounts:
    """What a replay counts; seconds in all."""

    tokens: int = 0
    device_hits: int = 0
    ram_hits: int = 0
    disk_loads: int = 0
    stall_seconds: float = 0.0
    copied_bytes: int = 0  # RAM -> device
    read_bytes: int = 0  # disk -> RAM or device
    prefetches: int = 0
    prefetch_hits: int = 0  # requested while, or after, it came up to the device
    prefetches_wasted: int = 0  # left the device before they were requested
    in_flight_waits: int = 0  # requested while under way


@dataclass(frozen=True)
class StallRow:
    """How long a decoded token waits for experts under one tier policy, and why."""

    tier_policy: str
    scope: str
    device_bytes: int
    ram_bytes: int
    fits: bool
    tokens: int
    device_hits: int
    ram_hits: int
    disk_loads: int
    stall_seconds: float
    copied_bytes: int
    read_bytes: int
    prefetches: int
    prefetch_hits: int
    prefetches_wasted: int
    in_flight_waits: int
    device_share: float
    ram_share: float
    disk_share: float
    stall_ms_per_token: float
    copied_bytes_per_token: float
    read_bytes_per_token: float

    def as_dict(self) -> dict[str, Any]:
        """The row as one JSON object."""
        return dict(vars(self))


def stall(
    trace: RoutingTrace,
    device: DeviceProfile,
    budget: TierBudget,
    tier_policy: str,
    *,
    scope: str = "global",
    resident_bytes: int = 0,
    progress: Progress | None = None,
) -> StallRow:
    """Replays decoding from cold caches.

    tier_policy  an eviction policy, for both tiers; "placement": watermark placement; "placement+prefetch":
                 the same with experts prefetched; "disk": nothing is kept; "ram": every expert is in RAM
                 (`fits` states whether it has room), none on the device
    scope        of an eviction policy's caches: "global", one for all layers, or "layer", one a layer
    UserError where a step does not fit, and for a trace without `expert_bytes`.
    """
    if min(trace.expert_bytes) <= 0:
        raise UserError("stall time needs a trace with expert_bytes, the size of one expert of each layer")
    experts = trace.layers * trace.num_experts
    check_memory(STATE_BYTES * experts, f"tiers for {trace.layers} layers x {trace.num_experts} experts")
    all_bytes = sum(trace.expert_bytes) * trace.num_experts
    token_bytes = trace.top_k * sum(trace.expert_bytes) + resident_bytes
    compute_seconds = device.seconds_per_token(token_bytes, trace.layers, 0, 0) / trace.layers
    policy = make_tier_policy(trace, device, budget, tier_policy, scope)
    prefetching = policy if tier_policy == PREFETCHING and isinstance(policy, WatermarkCache) else None
    found = _Replay(trace, device, policy, prefetching, compute_seconds).run(progress)
    requested = found.device_hits + found.ram_hits + found.disk_loads
    return StallRow(
        tier_policy=tier_policy,
        scope=scope,
        device_bytes=budget.device_bytes,
        ram_bytes=budget.ram_bytes,
        fits=tier_policy != RAM_ONLY or budget.ram_bytes >= all_bytes,
        **vars(found),
        device_share=found.device_hits / requested,
        ram_share=found.ram_hits / requested,
        disk_share=found.disk_loads / requested,
        stall_ms_per_token=1e3 * found.stall_seconds / found.tokens,
        copied_bytes_per_token=found.copied_bytes / found.tokens,
        read_bytes_per_token=found.read_bytes / found.tokens,
    )


class TransferChannel:
    """The bus between two tiers while nothing waits for it: prefetches use it first come, first served."""

    def __init__(self, transfer_seconds: float) -> None:
        self.transfer_seconds = transfer_seconds
        self.seconds_left: dict[FlatId, float] = {}  # of each expert under way

    def free_transfers(self, seconds: float) -> int:
        """How many more transfers can begin in the next `seconds`."""
        free = seconds - sum(self.seconds_left.values())
        return ceil(free / self.transfer_seconds) if free > 0 and self.transfer_seconds > 0 else 0

    def start(self, expert: FlatId, seconds: float) -> None:
        self.seconds_left[expert] = seconds

    def run(self, seconds: float) -> None:
        """Transfers for so much time."""
        for expert in list(self.seconds_left):
            done = min(seconds, self.seconds_left[expert])
            seconds -= done
            self.seconds_left[expert] -= done
            if self.seconds_left[expert] <= 0:
                del self.seconds_left[expert]

    def take(self, expert: FlatId) -> float:
        """Ends a transfer; the seconds that were left of it, 0 for an expert that is not under way."""
        return self.seconds_left.pop(expert, 0.0)


class _Replay:
    """A replay under way. `prefetching` is the tier policy where it prefetches, or None."""

    def __init__(
        self,
        trace: RoutingTrace,
        device: DeviceProfile,
        policy: TierPolicy,
        prefetching: WatermarkCache | None,
        compute_seconds: float,
    ) -> None:
        self.trace = trace
        self.policy = policy
        self.prefetching = prefetching
        self.compute_seconds = compute_seconds
        self.copy_seconds_L = [device.ram_seconds(size) for size in trace.expert_bytes]
        self.read_seconds_L = [device.disk_seconds(size) for size in trace.expert_bytes]
        self.counts = StallCounts()
        self.to_device = TransferChannel(max(self.copy_seconds_L) or max(self.read_seconds_L))
        self.to_ram = TransferChannel(max(self.read_seconds_L))
        self._unused: set[FlatId] = set()  # prefetched to the device, or on their way, and not yet requested

    def run(self, progress: Progress | None) -> StallCounts:
        passes = passes_of(self.trace, "decode")
        for i in range(len(passes)):
            rows = self.trace.experts[passes.begin[i] : passes.end[i]]
            self.counts.tokens += len(rows)
            for layer in range(self.trace.layers):
                experts = rows[:, layer]
                self._run_layer(layer, np.unique(experts[experts != EMPTY]).tolist())
            if progress:
                progress(i + 1, len(passes))
        return self.counts

    def _run_layer(self, layer: int, experts: Sequence[int]) -> None:
        if self.prefetching is None:
            self._count(layer, self.policy.request(layer, experts))
        else:
            self._run_layer_with_prefetch(self.prefetching, layer, experts)

    def _count(self, layer: int, plan: TransferPlan) -> None:
        counts, size = self.counts, self.trace.expert_bytes[layer]
        copy_seconds, read_seconds = self.copy_seconds_L[layer], self.read_seconds_L[layer]
        from_ram = len(plan.promote)
        from_disk = len(plan.load) - from_ram
        counts.device_hits += plan.hits
        counts.ram_hits += from_ram
        counts.disk_loads += from_disk
        counts.stall_seconds += (from_ram + from_disk) * copy_seconds + from_disk * read_seconds
        counts.copied_bytes += (from_ram + from_disk * (copy_seconds > 0)) * size
        counts.read_bytes += from_disk * size

    def _run_layer_with_prefetch(self, cache: WatermarkCache, layer: int, experts: Sequence[int]) -> None:
        requested = [flat_id(layer, expert, self.trace.num_experts) for expert in experts]
        self._wait_for(requested)
        before = cache.placement.tier
        limits = (
            self.to_device.free_transfers(self.compute_seconds),
            self.to_ram.free_transfers(self.compute_seconds),
        )
        plan = cache.request(layer, experts, limits)
        self._count(layer, plan)
        self._cancel([*plan.evict, *plan.drop])
        self._prefetch(cache.prefetched(before, requested))
        self.to_device.run(self.compute_seconds)
        self.to_ram.run(self.compute_seconds)

    def _take(self, expert: FlatId) -> float:
        """Ends the transfers of an expert; the seconds that were left of them."""
        return self.to_device.take(expert) + self.to_ram.take(expert)

    def _wait_for(self, requested: Sequence[FlatId]) -> None:
        for expert in requested:
            self.counts.prefetch_hits += expert in self._unused
            self._unused.discard(expert)
            seconds_left = self._take(expert)
            self.counts.in_flight_waits += seconds_left > 0
            self.counts.stall_seconds += seconds_left

    def _cancel(self, leaving: Sequence[FlatId]) -> None:
        for expert in leaving:
            self.counts.prefetches_wasted += expert in self._unused
            self._unused.discard(expert)
            self._take(expert)

    def _prefetch(self, risen: Prefetched) -> None:
        for expert in risen.to_device:
            layer, _ = layer_and_expert(expert, self.trace.num_experts)
            copied = self.copy_seconds_L[layer] > 0
            self.to_device.start(expert, self.copy_seconds_L[layer] or self.read_seconds_L[layer])
            self.counts.copied_bytes += self.trace.expert_bytes[layer] * copied
            self.counts.read_bytes += self.trace.expert_bytes[layer] * (not copied)
        for expert in risen.to_ram:
            layer, _ = layer_and_expert(expert, self.trace.num_experts)
            self.to_ram.start(expert, self.read_seconds_L[layer])
            self.counts.read_bytes += self.trace.expert_bytes[layer]
        self._unused.update(risen.to_device)
        self.counts.prefetches += len(risen.to_device)


def stall_lines(rows: Sequence[StallRow]) -> list[str]:
    """The rows as a table, least stall first."""
    lines = []
    for row in sorted(rows, key=lambda row: (not row.fits, row.stall_ms_per_token)):
        shares = f"device {row.device_share:.3f} ram {row.ram_share:.3f} disk {row.disk_share:.3f}"
        prefetched = ""
        if row.prefetches:
            used = f"used {row.prefetch_hits}, wasted {row.prefetches_wasted}"
            prefetched = f"   prefetched {row.prefetches}, {used}"
        lines.append(
            f"{row.tier_policy:<20}{row.scope:<8}{row.stall_ms_per_token:10.3f} ms/token   {shares}   "
            f"{row.read_bytes_per_token / 1e6:9.2f} MB/token read{prefetched}"
            f"{'' if row.fits else '   does not fit'}"
        )
    return lines
