"""Knows how the caches of a live engine act together, phases and tiers, and what each request therefore
moves; moves nothing itself.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from dwellmoe.cache.expert_cache import ExpertCache
from dwellmoe.cache.policies.base import parse_policy
from dwellmoe.cache.tiers.prefill_decode import PrefillDecodeCache
from dwellmoe.cache.tiers.tier_stack import TierStack
from dwellmoe.errors import UserError

PLACEMENT = "placement"  # by watermarks (`placed_live.py`), not by a policy
NOBODY: frozenset[int] = frozenset()


class TransferPlan(NamedTuple):
    """What one request moves; expert e of layer l is number l * E + e."""

    loads: list[int]
    """To be on the device for this request and not there by the cache's books, in order."""
    leaving: frozenset[int] = NOBODY
    """Leave the device: at once, or, if this request asks for them, once it has used them."""
    demoted: frozenset[int] = NOBODY
    """Those of `leaving` that go to RAM."""
    forgotten: Sequence[int] = ()
    """Leave RAM for good."""
    promoted: frozenset[int] = NOBODY
    """Those of `loads` that are in RAM, and leave it."""


class LiveCache:
    """Every cache of an engine: `split` for the device, by phase, and `ram` below it, or None.

    RAM takes what the decode cache evicts. What only passes through the prefill buffer is not worth a place
    there; where RAM has it, it is copied and stays.
    """

    def __init__(self, split: PrefillDecodeCache, ram: ExpertCache | None = None) -> None:
        self.split, self.ram = split, ram
        self.layers, self.experts = split.cache.layers, split.cache.experts
        self._tiers = None if ram is None else TierStack(split.cache, ram)

    def decode(self, layer: int, experts: Sequence[int]) -> TransferPlan:
        """One token's experts, or those of some rows of a batch one after the other."""
        step = self.split.decode(layer, experts)
        if not step.load:
            return TransferPlan([])
        if self._tiers is None:
            return TransferPlan(list(step.load), frozenset(step.evict))
        moved = self.split.moved
        fetched = [n for n in step.load if n not in moved] if moved else step.load
        tiers = self._tiers.settle(step.hits, fetched, step.evict)
        return self._in_tiers(list(step.load), step.evict, tiers)

    def prefill(self, layer: int, experts_TK: np.ndarray) -> TransferPlan:
        """One layer of a chunk."""
        step = self.split.prefill(layer, experts_TK)
        kept, loads, evicted = frozenset(step.kept.tolist()), step.loads.tolist(), step.evictions.tolist()
        leaving = (frozenset(evicted) | frozenset(step.released.tolist())) - kept
        if self.split.passing is None:
            leaving |= frozenset(loads) - kept
        if self._tiers is None:
            return TransferPlan(loads, leaving)
        # One that was evicted and loaded again in the same chunk never moved.
        staying = [n for n in loads if n in kept and n not in evicted]
        gone = [n for n in evicted if n not in kept]
        tiers = self._tiers.settle(step.hits, staying, gone)
        return self._in_tiers(loads, gone, tiers)._replace(leaving=leaving)

    @staticmethod
    def _in_tiers(loads: list[int], evictions: Sequence[int], tiers) -> TransferPlan:
        demoted = frozenset(tiers.demoted) - frozenset(tiers.dropped)
        forgotten = [number for number in tiers.dropped if number not in tiers.demoted]
        promoted = frozenset(tiers.from_ram)
        return TransferPlan(loads, frozenset(evictions), demoted, forgotten, promoted)

    def on_device(self, layer: int) -> np.ndarray:
        """bool [E]: who of `layer` is on the device by the books."""
        buffer = self.split.passing
        resident = self.split.cache.resident(layer)
        return resident if buffer is None else resident | buffer.resident(layer)

    def in_ram(self, layer: int) -> np.ndarray:
        """bool [E]"""
        return np.zeros(self.experts, np.bool_) if self.ram is None else self.ram.resident(layer)

    def lose(self, layer: int, expert: int) -> None:
        """Takes an expert off the books wherever it stands, because its weights are not there."""
        for cache in (self.split.cache, self.split.passing, self.ram):
            if cache is not None:
                cache.remove(layer, expert)

    def reset(self) -> None:
        """Every cache back to cold."""
        self.split.reset()
        if self.ram is not None:
            self.ram.reset()


def live_policy(policy: str, option: str) -> str:
    """The policy itself, if it decides without knowing the future. UserError that names the option."""
    if policy == PLACEMENT:
        return policy
    if parse_policy(policy)[0].lookahead != "none":
        raise UserError(
            f"--{option} {policy}: it needs to know the future: it can be simulated, but not run live"
        )
    return policy
