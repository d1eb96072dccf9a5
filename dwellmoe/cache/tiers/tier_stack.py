"""A cache of two tiers: the device's, and one in RAM that takes what the device's evicts.

The tiers exclude each other: an expert is on the device or in RAM, never both, so together they hold as many
experts as they have room for. Disk holds every expert. What RAM evicts is forgotten.
"""

from collections.abc import Sequence
from typing import NamedTuple

from dwellmoe.cache.expert_cache import ExpertCache
from dwellmoe.cache.flat_id import FlatId, layer_and_expert
from dwellmoe.cache.transfer_plan import TransferPlan
from dwellmoe.errors import UserError


class RamMoves(NamedTuple):
    """The part of a `TransferPlan` that concerns RAM."""

    promote: Sequence[FlatId] = ()
    demote: Sequence[FlatId] = ()
    drop: Sequence[FlatId] = ()


class TierStack:
    """An `ExpertCache` for each tier. `ram` may be smaller than the device's cache, or None."""

    def __init__(self, device: ExpertCache, ram: ExpertCache | None) -> None:
        if ram is not None and (ram.layers, ram.experts) != (device.layers, device.experts):
            raise UserError(
                f"tiers must be of one model: device has {device.layers} x {device.experts} experts, "
                f"RAM {ram.layers} x {ram.experts}"
            )
        self.device = device
        self.ram = ram

    def request(self, layer: int, experts) -> TransferPlan:
        """Layer `layer` needs `experts`, as `ExpertCache.request`."""
        plan = self.device.request(layer, experts)
        ram = self.ram_moves(plan.load, plan.evict)
        return TransferPlan(plan.hits, plan.load, plan.evict, ram.promote, ram.demote, ram.drop)

    def ram_moves(self, load: Sequence[FlatId], evict: Sequence[FlatId]) -> RamMoves:
        """What RAM does when `load` come to the device and `evict` leave it; promotions make room first."""
        if self.ram is None:
            return RamMoves()
        promote = [each for each in load if self.ram.remove(*layer_and_expert(each, self.ram.experts))]
        dropped: list[FlatId] = []
        for each in evict:
            layer, expert = layer_and_expert(each, self.ram.experts)
            dropped += self.ram.request(layer, [expert]).evict
        if not dropped:
            return RamMoves(promote, evict)
        demote = [each for each in evict if each not in dropped]
        return RamMoves(promote, demote, [each for each in dropped if each not in evict])
