"""Knows who may keep experts over device, RAM and disk, and with how much room; keeps no time.

Expert e of layer l is number l * E + e.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from dwellmoe.cache.budget import budget_of
from dwellmoe.cache.device import GIGA, DeviceProfile
from dwellmoe.cache.expert_cache import ExpertCache
from dwellmoe.cache.policies.base import parse_policy
from dwellmoe.cache.tiers.live import PLACEMENT
from dwellmoe.cache.tiers.tier_stack import TierStack, TierStep
from dwellmoe.cache.tiers.watermark.placement import Tier
from dwellmoe.cache.tiers.watermark.watermark_cache import WatermarkCache
from dwellmoe.cache.trace import RoutingTrace
from dwellmoe.errors import UserError

DISK_ALONE, RAM_ALONE, PREFETCHING = "disk", "ram", "placement+prefetch"
SCOPELESS = (DISK_ALONE, RAM_ALONE, PLACEMENT, PREFETCHING)


@dataclass(frozen=True)
class Room:
    """Bytes for experts on the device and in RAM."""

    device_bytes: int
    ram_bytes: int


def room_on(trace: RoutingTrace, device: DeviceProfile, resident_bytes: int, *given: str | None) -> Room:
    """Bytes of both tiers: as `given` (percent of all experts, slots, bytes), else as the profile says."""
    had = device.memory_gb and device.memory_gb * GIGA - resident_bytes, (device.ram_gb or 0.0) * GIGA
    most = sum(trace.expert_bytes) * trace.num_experts
    found = []
    for name, text, left in zip(("--capacity", "--ram_capacity"), given, had, strict=True):
        if text is not None:
            found.append(0 if text == "0" else budget_of(trace, "global", text).capacity_bytes or 0)
        elif left is None:
            raise UserError(f"'{device.name}' does not limit its memory: give {name}")
        else:
            found.append(min(most, int(max(0.0, left))))
    return Room(*found)


def settings_of(managers: Sequence[str]) -> list[tuple[str, str]]:
    """(manager, scope) of each: a policy with one cache for all layers, and with one a layer."""
    scopes = {each: ("global",) if each in SCOPELESS else ("global", "layer") for each in managers}
    return [(each, scope) for each in managers for scope in scopes[each]]


class Nothing:
    """Keeps nothing on the device: all that is asked for comes out of one tier."""

    def __init__(self, experts: int, ram: bool) -> None:
        self.experts, self.ram = experts, ram

    def step(self, layer: int, experts: Sequence[int]) -> TierStep:
        asked = [layer * self.experts + int(expert) for expert in experts]
        return TierStep(0, asked if self.ram else [], [] if self.ram else asked, [], [])


def make_manager(trace: RoutingTrace, device: DeviceProfile, room: Room, manager: str, scope: str):
    """Whoever keeps the tiers. UserError for an unknown one, and for a tier that is too small."""
    if manager in (DISK_ALONE, RAM_ALONE):
        return Nothing(trace.num_experts, manager == RAM_ALONE)
    if manager in (PLACEMENT, PREFETCHING):
        size = sum(trace.expert_bytes) / trace.layers
        copy, read = device.ram_seconds(size), device.disk_seconds(size)
        tiers = Tier(room.device_bytes, copy or read), Tier(room.ram_bytes, read)
        placed = WatermarkCache(trace.expert_bytes, trace.num_experts, tiers, device.placement)
        placed.follow(trace)
        return placed
    if parse_policy(manager)[0].lookahead != "none":
        raise UserError(f"policy '{manager}' looks ahead: tiers are replayed step by step, as if run live")
    caches = [_cache(trace, manager, scope, size) for size in (room.device_bytes, room.ram_bytes)]
    if caches[0] is None:
        raise UserError(f"{room.device_bytes} bytes on the device hold no expert of each layer")
    return TierStack(caches[0], caches[1])


def _cache(trace: RoutingTrace, policy: str, scope: str, limit_bytes: int) -> ExpertCache | None:
    """A tier under a policy; None where it holds nothing."""
    sizes = {"layers": trace.layers, "experts": trace.num_experts, "scope": scope}
    if scope == "layer":
        slots = min(trace.num_experts, limit_bytes // sum(trace.expert_bytes))
        return ExpertCache(policy, **sizes, capacity=slots) if slots else None
    if limit_bytes < max(trace.expert_bytes):
        return None
    return ExpertCache(policy, **sizes, budget_bytes=limit_bytes, expert_bytes=trace.expert_bytes)
