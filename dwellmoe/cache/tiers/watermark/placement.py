"""Knows which experts belong on the device, in RAM or on disk at given probabilities of use; moves none.

Two tiers of limited bytes, the device above RAM; disk holds everything and an expert is in one tier at most.
A tier's price is the benefit density (probability * fetch time / size) of the first expert that a feasible
choice leaves out. Who is out comes in at price * (1 + h); who is in goes out when bytes are needed and its
density is below that of whoever comes by (1 - h) / (1 + h), which is price * (1 - h) for one at the border.
So usage never passes a limit and nothing moves while probabilities stand still.
Letters: N experts of all layers together.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from dwellmoe.cache.kernel.jit import compiled
from dwellmoe.errors import UserError

DEVICE, RAM, DISK = 0, 1, 2


@dataclass(frozen=True)
class Tier:
    """What a tier holds, and what it costs to bring an expert up into it from below."""

    limit_bytes: int
    fetch_seconds: float


@dataclass(frozen=True)
class Placement:
    tier: np.ndarray  # uint8 [N]: DEVICE, RAM or DISK
    prices: tuple[float, float]  # of the device and of RAM; 0 where everything fits

    def with_tier(self, tier: np.ndarray) -> "Placement":
        """The same prices with experts elsewhere."""
        return replace(self, tier=tier)

    def used(self, size: np.ndarray, tier: int) -> int:
        """Bytes of a tier that are taken."""
        return int(size[self.tier == tier].sum())


def nothing_placed(experts: int) -> Placement:
    """Everything on disk."""
    return Placement(np.full(experts, DISK, np.uint8), (0.0, 0.0))


def place(
    before: Placement,
    likely: np.ndarray,
    size: np.ndarray,
    tiers: tuple[Tier, Tier],
    running: Sequence[int] = (),
    last_use: np.ndarray | None = None,
    hysteresis: float = 0.1,
    rising: tuple[Sequence[int], Sequence[int]] | None = None,
) -> Placement:
    """Where each expert should be next.

    likely    float [N]: probability of use; size int [N] bytes; `tiers`: the device, RAM
    running   experts that the running layer needs: on the device, and counted first
    last_use  int [N]: ties go to the latest use, then to the lower number
    rising    who else may come up, to the device and to RAM, where there is no time for everybody who is
              worth it; None: everybody
    UserError where the running layer alone does not fit the device.
    """
    order = _order(len(size), last_use)
    pinned = _members(len(size), running)
    if size[pinned].sum() > tiers[0].limit_bytes:
        raise UserError(
            f"the running layer needs {int(size[pinned].sum())} bytes on a device of {tiers[0].limit_bytes}"
        )
    everybody = np.ones(len(size), np.bool_)
    to_device, to_ram = (everybody,) * 2 if rising is None else (_members(len(size), up) for up in rising)

    def choose(inside, candidates, pinned, tier: Tier):
        density = likely * tier.fetch_seconds / size
        best_first = order[np.argsort(-density[order], kind="stable")]
        chosen = inside & candidates | pinned
        price = _choose(
            chosen, density, size, candidates | chosen, pinned, best_first, tier.limit_bytes, hysteresis
        )
        return chosen, price

    was_on_device, was_near = before.tier == DEVICE, before.tier <= RAM
    on_device, price = choose(was_on_device, was_on_device | to_device, pinned, tiers[0])
    nobody = np.zeros_like(pinned)
    in_ram, ram_price = choose(was_near, ~on_device & (was_near | to_ram), nobody, tiers[1])
    tier = np.where(on_device, DEVICE, np.where(in_ram, RAM, DISK)).astype(np.uint8)
    return Placement(tier, (price, ram_price))


def _members(experts: int, numbers: Sequence[int]) -> np.ndarray:
    """bool [N]"""
    among = np.zeros(experts, np.bool_)
    among[list(numbers)] = True
    return among


def _order(experts: int, last_use: np.ndarray | None) -> np.ndarray:
    """int [N]: numbers in the order in which equals are preferred."""
    if last_use is None:
        return np.arange(experts)
    return np.argsort(-np.asarray(last_use), kind="stable")


@compiled
def _choose(chosen, density, size, candidates, pinned, best_first, limit_bytes, hysteresis):
    """Makes `chosen`, bool [N], who is in the tier next instead of now; returns the tier's price.

    The price is the density of the best candidate that does not fit when the best come first, 0 where all
    fit. Letters as above; all arrays are [N].
    """
    left = limit_bytes - size[pinned].sum()
    price = 0.0
    for expert in best_first:
        if pinned[expert] or not candidates[expert]:
            continue
        if size[expert] > left:
            price = density[expert]
            break
        left -= size[expert]
    free, at = limit_bytes - size[chosen].sum(), len(best_first) - 1
    while free < 0:  # the worst leave until it fits
        worst = best_first[at]
        if chosen[worst] and not pinned[worst]:
            chosen[worst] = False
            free += size[worst]
        at -= 1
    for expert in best_first:
        if density[expert] <= 0 or density[expert] < price * (1 + hysteresis):
            break
        if chosen[expert] or not candidates[expert]:
            continue
        room, below = free, at
        while room < size[expert] and below >= 0:
            worst = best_first[below]
            if density[worst] * (1 + hysteresis) >= density[expert] * (1 - hysteresis):
                break
            if chosen[worst] and not pinned[worst]:
                room += size[worst]
            below -= 1
        if room >= size[expert]:
            for place in range(below + 1, at + 1):
                worst = best_first[place]
                if chosen[worst] and not pinned[worst]:
                    chosen[worst] = False
            chosen[expert], free, at = True, room - size[expert], below
    return price
