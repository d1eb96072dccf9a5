"""Knows how a step's loads spread over device, RAM and disk; moves nothing, and leaves each tier to its own
cache.

The tiers exclude each other: an expert is on the device or in RAM, never both, so together they hold as many
experts as they have room for. Disk holds everything. What the device evicts moves down to RAM; what RAM
evicts is forgotten.
"""

from collections.abc import Sequence
from typing import NamedTuple

from dwellmoe.cache.expert_cache import ExpertCache
from dwellmoe.errors import UserError


class TierStep(NamedTuple):
    """What one request moves; expert e of layer l is number l * E + e."""

    hits: int  # on the device
    from_ram: list[int]
    from_disk: list[int]
    demoted: list[int]  # device -> RAM
    dropped: list[int]  # forgotten: from RAM, or from the device where there is no RAM tier


class TierStack:
    """An ExpertCache a tier. `ram` may have any capacity, even less than the device's, or be None."""

    def __init__(self, device: ExpertCache, ram: ExpertCache | None) -> None:
        if ram is not None and (ram.layers, ram.experts) != (device.layers, device.experts):
            raise UserError(
                f"tiers must be of one model: device has {device.layers} x {device.experts} experts, "
                f"RAM {ram.layers} x {ram.experts}"
            )
        self.device, self.ram = device, ram
        self.counts = {"device_hits": 0, "ram_hits": 0, "disk_loads": 0, "demotions": 0}

    def step(self, layer: int, experts) -> TierStep:
        """Layer `layer` asks for `experts`, as `ExpertCache.request`. Promotions leave RAM before demotions
        enter it.
        """
        found = self.device.request(layer, experts)
        return self.settle(found.hits, found.load, found.evict)

    def settle(self, hits: int, loads: Sequence[int], evictions: Sequence[int]) -> TierStep:
        """What a step of the device's cache makes of the tiers below: `loads` stay on the device, `evictions`
        leave it.
        """
        from_ram, from_disk = [], []
        for number in loads:
            (from_ram if self._leaves_ram(number) else from_disk).append(number)
        demoted, dropped = self._demote(evictions)
        moved = (hits, len(from_ram), len(from_disk), len(demoted))
        for name, more in zip(self.counts, moved, strict=True):
            self.counts[name] += more
        return TierStep(hits, from_ram, from_disk, demoted, dropped)

    def _leaves_ram(self, number: int) -> bool:
        return self.ram is not None and self.ram.remove(*divmod(number, self.ram.experts))

    def _demote(self, evictions: Sequence[int]) -> tuple[list[int], list[int]]:
        leaving = list(evictions)
        if self.ram is None:
            return [], leaving
        dropped = []
        for number in leaving:
            layer, expert = divmod(number, self.ram.experts)
            dropped.extend(self.ram.request(layer, [expert]).evict)
        return leaving, dropped
