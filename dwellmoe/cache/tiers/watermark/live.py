"""Watermark placement as the decode cache and the RAM tier of a live engine, in place of a policy for each.

Every expert counts as one slot.
"""

from collections.abc import Iterable

import numpy as np

from dwellmoe.cache.device import PlacementConstants
from dwellmoe.cache.flat_id import flat_id
from dwellmoe.cache.predictors import Predictor
from dwellmoe.cache.tiers.watermark.placement import DEVICE, DISK, RAM, Tier, nothing_placed
from dwellmoe.cache.tiers.watermark.watermark_cache import WatermarkCache
from dwellmoe.cache.transfer_plan import TransferPlan

KINDS = ("hits", "misses", "compulsory_misses", "evictions")


class WatermarkDevice:
    """Looks like an `ExpertCache` with `capacity` slots a layer, but layers share them: the experts of the
    highest value stay, of whatever layer.

    `ram` is the tier below, or None. `lookahead`: a predictor of the running token's later layers, or None.
    """

    scope = "layer"  # of what one request may need at once

    def __init__(
        self,
        layers: int,
        experts: int,
        capacity: int,
        ram_slots: int = 0,
        lookahead: Predictor | None = None,
    ) -> None:
        tiers = Tier(layers * capacity, 1.0), Tier(ram_slots, 1.0)
        constants = PlacementConstants(lookahead="")
        self.layers = layers
        self.experts = experts
        self.capacity = capacity
        self._cache = WatermarkCache((1,) * layers, experts, tiers, constants, lookahead)
        self._seen = np.zeros(layers * experts, np.bool_)
        self._counts = np.zeros((layers, len(KINDS)), np.int64)
        self.ram = WatermarkRam(self, ram_slots) if ram_slots else None

    def request(self, layer: int, experts: Iterable[int], *, counted: bool = True) -> TransferPlan:
        """As `ExpertCache.request`, with the moves of RAM; experts that leave may be of any layer."""
        requested = [int(expert) for expert in experts]
        distinct = list(dict.fromkeys(requested))
        plan = self._cache.request(layer, distinct)
        hits = len(requested) - len(plan.load)
        load = np.array(plan.load, np.int64)
        if counted:
            first_uses = int((~self._seen[load]).sum())
            self._counts[layer] += (hits, len(load), first_uses, len(plan.evict))
        self._seen[layer * self.experts + np.array(distinct, np.int64)] = True
        return TransferPlan(hits, plan.load, plan.evict, plan.promote, plan.demote, plan.drop)

    @property
    def tier(self) -> np.ndarray:
        """uint8 [N]: DEVICE, RAM or DISK."""
        return self._cache.placement.tier

    def remove(self, layer: int, expert: int, tier: int = DEVICE) -> bool:
        """Takes an expert out of a tier; whether it was there."""
        removed = flat_id(layer, expert, self.experts)
        if self.tier[removed] != tier:
            return False
        now = self.tier.copy()
        now[removed] = DISK
        self._cache.placement = self._cache.placement.with_tier(now)
        return True

    def resident(self, layer: int, tier: int = DEVICE) -> np.ndarray:
        """bool [E]: experts of `layer` that are in a tier."""
        return self.tier[layer * self.experts : (layer + 1) * self.experts] == tier

    def counts(self, layer: int | None = None) -> dict[str, int]:
        """As `ExpertCache.counts`."""
        total = self._counts.sum(axis=0) if layer is None else self._counts[layer]
        return dict(zip(KINDS, total.tolist(), strict=True))

    def reset(self) -> None:
        """Everything on disk; what was learned of the routing stays, and the counts go on."""
        self._cache.placement = nothing_placed(len(self.tier))
        self._seen[:] = False


class WatermarkRam:
    """The RAM tier of a `WatermarkDevice`, which decides its moves."""

    def __init__(self, device: WatermarkDevice, capacity: int) -> None:
        self._device = device
        self.capacity = capacity

    def remove(self, layer: int, expert: int) -> bool:
        """Takes an expert out of RAM; whether it was there."""
        return self._device.remove(layer, expert, RAM)

    def resident(self, layer: int) -> np.ndarray:
        """bool [E]: experts of `layer` that are in RAM."""
        return self._device.resident(layer, RAM)

    def reset(self) -> None:
        """Done by the device's `reset`."""
