"""The caches of a live engine together: prefill and decode on the device, RAM below."""

from collections.abc import Sequence

import numpy as np

from dwellmoe.cache.expert_cache import ExpertCache
from dwellmoe.cache.tiers.prefill_decode import PrefillDecodeCache
from dwellmoe.cache.tiers.tier_stack import RamMoves, TierStack
from dwellmoe.cache.tiers.watermark.live import WatermarkRam
from dwellmoe.cache.transfer_plan import TransferPlan


class LiveCache:
    """Every cache of an engine: `device`, by phase, and `ram` below it, or None.

    RAM takes what the decode cache evicts. An expert that only passes through the prefill buffer is not worth
    a slot there; one that RAM holds is then copied and stays.
    """

    def __init__(self, device: PrefillDecodeCache, ram: ExpertCache | WatermarkRam | None = None) -> None:
        self.device = device
        self.ram = ram
        self.layers = device.decode_cache.layers
        self.experts = device.decode_cache.experts
        # The plan of a watermark cache has the moves of RAM already.
        self._tiers = TierStack(device.decode_cache, ram) if isinstance(ram, ExpertCache) else None

    def request(self, layer: int, experts: Sequence[int]) -> TransferPlan:
        """One decoded token's experts, or those of some rows of a batch, one row after the other."""
        buffered_E = self._in_prefill_cache(layer)
        plan = self.device.request(layer, experts)
        if self._tiers is None or not plan.load:
            return plan
        first = layer * self.experts
        fetched = plan.load if buffered_E is None else [e for e in plan.load if not buffered_E[e - first]]
        ram = self._tiers.ram_moves(fetched, plan.evict)
        return TransferPlan(plan.hits, plan.load, plan.evict, ram.promote, ram.demote, ram.drop)

    def _in_prefill_cache(self, layer: int) -> np.ndarray | None:
        """bool [E], where it matters: RAM gives up what comes from there, not what the device has already."""
        cache = self.device.prefill_cache
        return None if cache is None or self._tiers is None else cache.resident(layer)

    def prefill(self, layer: int, experts_TK: np.ndarray) -> TransferPlan:
        """One layer of a prefill chunk; experts of it that are in `evict` leave once they were used."""
        chunk = self.device.prefill(layer, experts_TK)
        kept = frozenset(chunk.kept)
        evict = [each for each in chunk.decode.evict if each not in kept]
        ram = RamMoves(chunk.decode.promote, chunk.decode.demote, chunk.decode.drop)
        if self._tiers is not None:
            # An expert that was evicted and loaded again in the same chunk never moved.
            evicted = frozenset(chunk.decode.evict)
            ram = self._tiers.ram_moves([e for e in chunk.load if e in kept and e not in evicted], evict)
        passing = chunk.released if self.device.prefill_cache else chunk.load
        leaving = dict.fromkeys([*evict, *(each for each in passing if each not in kept)])
        return TransferPlan(chunk.hits, chunk.load, list(leaving), ram.promote, ram.demote, ram.drop)

    def on_device(self, layer: int) -> np.ndarray:
        """bool [E]: experts of `layer` that are on the device."""
        resident_E = self.device.decode_cache.resident(layer)
        buffer = self.device.prefill_cache
        return resident_E if buffer is None else resident_E | buffer.resident(layer)

    def in_ram(self, layer: int) -> np.ndarray:
        """bool [E]: experts of `layer` that are in RAM."""
        return np.zeros(self.experts, np.bool_) if self.ram is None else self.ram.resident(layer)

    def invalidate(self, layer: int, expert: int) -> None:
        """Removes an expert from every cache, because its weights could not be brought."""
        for cache in (self.device.decode_cache, self.device.prefill_cache, self.ram):
            if cache is not None:
                cache.remove(layer, expert)

    def reset(self) -> None:
        """Every cache back to cold."""
        self.device.reset()
        if self.ram is not None:
            self.ram.reset()
