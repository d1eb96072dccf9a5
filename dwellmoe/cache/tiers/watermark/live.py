"""Knows how watermark placement keeps a live engine's decode cache and RAM, instead of a policy each; moves
nothing itself.

All experts count as one slot. Expert e of layer l is number l * E + e.
"""

from collections.abc import Iterable
from typing import Any

import numpy as np

from dwellmoe.cache.device import PlacementConstants
from dwellmoe.cache.tiers.watermark.placement import DEVICE, DISK, RAM, Tier, nothing_placed
from dwellmoe.cache.tiers.watermark.watermark_cache import WatermarkCache
from dwellmoe.cache.transfer_plan import TransferPlan

KINDS = ("hits", "misses", "compulsory_misses", "evictions")


class WatermarkDevice:
    """Looks like an `ExpertCache` with `capacity` slots a layer, but layers share them: who is worth most
    stays. `ram` is the tier below, or None; `ahead` a predictor that knows more of the running token's later
    layers, or None.
    """

    scope = "layer"  # of what it is asked for at once

    def __init__(
        self, layers: int, experts: int, capacity: int, ram_slots: int = 0, ahead: Any = None
    ) -> None:
        tiers = Tier(layers * capacity, 1.0), Tier(ram_slots, 1.0)
        self.layers, self.experts, self.capacity = layers, experts, capacity
        self._placed = WatermarkCache((1,) * layers, experts, tiers, PlacementConstants(ahead=""), ahead)
        self.came_from_ram: set[int] = set()  # in the last step
        self.dropped: list[int] = []  # by RAM, in the last step
        self._seen = np.zeros(layers * experts, np.bool_)
        self._counts = np.zeros((layers, len(KINDS)), np.int64)
        self.ram = PlacedRam(self, ram_slots) if ram_slots else None

    def request(self, layer: int, experts: Iterable[int], *, counted: bool = True) -> TransferPlan:
        """As `ExpertCache.request`; what leaves may be of any layer."""
        asked, before = [int(expert) for expert in experts], self.tier
        distinct = list(dict.fromkeys(asked))
        found = self._placed.step(layer, distinct)
        numbers = layer * self.experts + np.array(distinct, np.int32)
        loads = numbers[before[numbers] != DEVICE]
        evictions = np.flatnonzero((before == DEVICE) & (self.tier != DEVICE)).astype(np.int32)
        self.came_from_ram = set(found.from_ram)
        self.dropped = [number for number in found.dropped if before[number] == RAM]
        if counted:
            first = int((~self._seen[loads]).sum())
            self._counts[layer] += (len(asked) - len(loads), len(loads), first, len(evictions))
        self._seen[numbers] = True
        return TransferPlan(len(asked) - len(loads), loads.tolist(), evictions.tolist())

    @property
    def tier(self) -> np.ndarray:
        """uint8 [N]: DEVICE, RAM or DISK."""
        return self._placed.placement.tier

    def remove(self, layer: int, expert: int) -> bool:
        return self.lose(layer * self.experts + expert, DEVICE)

    def lose(self, number: int, tier: int) -> bool:
        """Takes an expert off the books of a tier; whether it stood there."""
        if self.tier[number] != tier:
            return False
        now = self.tier.copy()
        now[number] = DISK
        self._placed.placement = self._placed.placement.with_tier(now)
        return True

    def resident(self, layer: int, tier: int = DEVICE) -> np.ndarray:
        """bool [E]"""
        return self.tier[layer * self.experts : (layer + 1) * self.experts] == tier

    def counts(self, layer: int | None = None) -> dict[str, int]:
        total = self._counts.sum(axis=0) if layer is None else self._counts[layer]
        return dict(zip(KINDS, total.tolist(), strict=True))

    def reset(self) -> None:
        """Everything on disk; what was learned of the routing stays, and the counts go on."""
        self._placed.placement = nothing_placed(len(self.tier))
        self._seen[:] = False


class PlacedRam:
    """The tier below, as `TierStack` asks for it: its moves were decided with the device's."""

    def __init__(self, device: WatermarkDevice, capacity: int) -> None:
        self._device, self.capacity = device, capacity
        self.layers, self.experts = device.layers, device.experts

    def remove(self, layer: int, expert: int) -> bool:
        number = layer * self.experts + expert
        if number in self._device.came_from_ram:
            self._device.came_from_ram.discard(number)
            return True
        return self._device.lose(number, RAM)

    def request(self, layer: int, experts: Iterable[int]) -> TransferPlan:
        """Who leaves the device comes here, or where RAM holds better ones goes at once."""
        gone, self._device.dropped = self._device.dropped, []
        numbers = [layer * self.experts + int(expert) for expert in experts]
        gone = gone + [number for number in numbers if self._device.tier[number] != RAM]
        return TransferPlan(evict=gone)

    def resident(self, layer: int) -> np.ndarray:
        return self._device.resident(layer, RAM)

    def reset(self) -> None: ...
