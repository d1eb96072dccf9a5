"""What can keep experts over device, RAM and disk, and how many bytes it has for them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from dwellmoe.cache.budget import budget_of
from dwellmoe.cache.device import GIGA, DeviceProfile
from dwellmoe.cache.expert_cache import ExpertCache
from dwellmoe.cache.flat_id import FlatId, flat_id
from dwellmoe.cache.policies.base import check_live_policy
from dwellmoe.cache.tiers.tier_stack import TierStack
from dwellmoe.cache.tiers.watermark.placement import Tier
from dwellmoe.cache.tiers.watermark.watermark_cache import WatermarkCache
from dwellmoe.cache.trace import RoutingTrace
from dwellmoe.cache.transfer_plan import TransferPlan
from dwellmoe.errors import UserError

DISK_ONLY, RAM_ONLY, PLACEMENT, PREFETCHING = "disk", "ram", "placement", "placement+prefetch"
WITHOUT_SCOPE = (DISK_ONLY, RAM_ONLY, PLACEMENT, PREFETCHING)


class TierPolicy(Protocol):
    """Decides which tier each expert is in."""

    def request(self, layer: int, experts: Sequence[int]) -> TransferPlan:
        """Layer `layer` needs `experts` on the device."""
        ...


@dataclass(frozen=True)
class TierBudget:
    """Bytes for experts on the device and in RAM."""

    device_bytes: int
    ram_bytes: int


def tier_budget(
    trace: RoutingTrace,
    device: DeviceProfile,
    resident_bytes: int,
    capacity: str | None = None,
    ram_capacity: str | None = None,
) -> TierBudget:
    """Bytes of both tiers: as given (percent of all experts, slots, bytes), else as the profile states.

    UserError where neither limits the device.
    """
    memory_left = None if device.memory_gb is None else device.memory_gb * GIGA - resident_bytes
    if capacity is None and memory_left is None:
        raise UserError(f"'{device.name}' does not limit its memory: give --capacity")
    return TierBudget(
        _tier_bytes(trace, capacity, memory_left or 0.0),
        _tier_bytes(trace, ram_capacity, (device.ram_gb or 0.0) * GIGA),
    )


def _tier_bytes(trace: RoutingTrace, given: str | None, bytes_left: float) -> int:
    if given == "0":
        return 0
    if given is not None:
        return budget_of(trace, "global", given).capacity_bytes or 0
    return min(sum(trace.expert_bytes) * trace.num_experts, int(max(0.0, bytes_left)))


def with_scopes(names: Sequence[str]) -> list[tuple[str, str]]:
    """(tier policy, scope): eviction policies with one cache for all layers, and with one a layer."""
    return [
        (name, scope)
        for name in names
        for scope in (("global",) if name in WITHOUT_SCOPE else ("global", "layer"))
    ]


class NothingKept:
    """A tier policy that keeps nothing on the device: every request is served from one tier below."""

    def __init__(self, experts: int, from_ram: bool) -> None:
        self.experts = experts
        self.from_ram = from_ram

    def request(self, layer: int, experts: Sequence[int]) -> TransferPlan:
        load: list[FlatId] = [flat_id(layer, int(expert), self.experts) for expert in experts]
        return TransferPlan(load=load, evict=load, promote=load if self.from_ram else ())


def make_tier_policy(
    trace: RoutingTrace, device: DeviceProfile, budget: TierBudget, name: str, scope: str
) -> TierPolicy:
    """UserError for an unknown name, and for a tier that is too small."""
    if name in (DISK_ONLY, RAM_ONLY):
        return NothingKept(trace.num_experts, name == RAM_ONLY)
    if name in (PLACEMENT, PREFETCHING):
        return _watermark_cache(trace, device, budget)
    check_live_policy(name, f"policy '{name}'")
    device_cache = _cache(trace, name, scope, budget.device_bytes)
    if device_cache is None:
        raise UserError(f"{budget.device_bytes} bytes on the device hold no expert of each layer")
    return TierStack(device_cache, _cache(trace, name, scope, budget.ram_bytes))


def _watermark_cache(trace: RoutingTrace, device: DeviceProfile, budget: TierBudget) -> WatermarkCache:
    mean_bytes = sum(trace.expert_bytes) / trace.layers
    copy_seconds = device.ram_seconds(mean_bytes)
    read_seconds = device.disk_seconds(mean_bytes)
    tiers = (
        Tier(budget.device_bytes, copy_seconds or read_seconds),
        Tier(budget.ram_bytes, read_seconds),
    )
    cache = WatermarkCache(trace.expert_bytes, trace.num_experts, tiers, device.placement)
    cache.follow(trace)
    return cache


def _cache(trace: RoutingTrace, policy: str, scope: str, limit_bytes: int) -> ExpertCache | None:
    """A tier under a policy; None where it holds nothing."""
    shape = {"layers": trace.layers, "experts": trace.num_experts, "scope": scope}
    if scope == "layer":
        slots = min(trace.num_experts, limit_bytes // sum(trace.expert_bytes))
        return ExpertCache(policy, **shape, capacity=slots) if slots else None
    if limit_bytes < max(trace.expert_bytes):
        return None
    return ExpertCache(policy, **shape, budget_bytes=limit_bytes, expert_bytes=trace.expert_bytes)
