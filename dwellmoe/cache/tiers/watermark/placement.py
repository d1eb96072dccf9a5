"""Watermark placement: which experts belong on the device, in RAM or on disk, by their probability of use.

Two tiers of limited bytes, the device above RAM; disk holds everything and an expert is in one tier at most.
A tier's price is the benefit density (probability * fetch time / size) of the first expert that a feasible
choice leaves out. An expert outside comes in above price * (1 + h). One inside goes out when its bytes are
needed and its density is below (1 - h) / (1 + h) times that of the expert that comes in. So usage never
exceeds a limit, and nothing moves while probabilities stand still.
Letters: N experts of all layers together, h hysteresis.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from dwellmoe.cache.kernel.jit import compiled
from dwellmoe.errors import UserError

DEVICE, RAM, DISK = 0, 1, 2


@dataclass(frozen=True)
class Tier:
    """The bytes a tier holds, and the time to bring an expert up into it from the tier below."""

    limit_bytes: int
    fetch_seconds: float


@dataclass(frozen=True)
class Placement:
    """The tier of each expert, and the price of each tier."""

    tier: np.ndarray  # uint8 [N]: DEVICE, RAM or DISK
    prices: tuple[float, float]  # of the device and of RAM; 0 where everything fits

    def with_tier(self, tier: np.ndarray) -> "Placement":
        """The same prices with experts elsewhere."""
        return replace(self, tier=tier)


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
    last_use  int [N]: ties go to the latest use, then to the lower flat id
    rising    experts that may come up, to the device and to RAM, although they are not needed now; None: all
    UserError where the running layer alone does not fit the device.
    """
    order = _order(len(size), last_use)
    pinned = _members(len(size), running)
    if size[pinned].sum() > tiers[0].limit_bytes:
        raise UserError(
            f"the running layer needs {int(size[pinned].sum())} bytes on a device of {tiers[0].limit_bytes}"
        )
    if rising is None:
        to_device = to_ram = np.ones(len(size), np.bool_)
    else:
        to_device, to_ram = (_members(len(size), flat_ids) for flat_ids in rising)

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
    in_ram, ram_price = choose(was_near, ~on_device & (was_near | to_ram), np.zeros_like(pinned), tiers[1])
    tier = np.where(on_device, DEVICE, np.where(in_ram, RAM, DISK)).astype(np.uint8)
    return Placement(tier, (price, ram_price))


def _members(experts: int, flat_ids: Sequence[int]) -> np.ndarray:
    """bool [N]"""
    members = np.zeros(experts, np.bool_)
    members[list(flat_ids)] = True
    return members


def _order(experts: int, last_use: np.ndarray | None) -> np.ndarray:
    """int [N]: flat ids in the order in which equals are preferred."""
    if last_use is None:
        return np.arange(experts)
    return np.argsort(-np.asarray(last_use), kind="stable")


@compiled
def _choose(chosen, density, size, candidates, pinned, best_first, limit_bytes, hysteresis):
    """Changes `chosen`, bool [N], from the tier's experts now to those that it holds next; returns its price.

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
    free = limit_bytes - size[chosen].sum()
    last = len(best_first) - 1  # what is behind it has left
    while free < 0:  # the worst leave until it fits
        worst = best_first[last]
        if chosen[worst] and not pinned[worst]:
            chosen[worst] = False
            free += size[worst]
        last -= 1
    for expert in best_first:
        if density[expert] <= 0 or density[expert] < price * (1 + hysteresis):
            break
        if chosen[expert] or not candidates[expert]:
            continue
        room, below = free, last
        while room < size[expert] and below >= 0:
            worst = best_first[below]
            if density[worst] * (1 + hysteresis) >= density[expert] * (1 - hysteresis):
                break
            if chosen[worst] and not pinned[worst]:
                room += size[worst]
            below -= 1
        if room >= size[expert]:
            for i in range(below + 1, last + 1):
                worst = best_first[i]
                if chosen[worst] and not pinned[worst]:
                    chosen[worst] = False
            chosen[expert] = True
            free, last = room - size[expert], below
    return price
