"""Knows which experts belong on the device, in RAM or on disk at given probabilities of use; moves none.

Two tiers of limited bytes, the device above RAM; disk holds everything and an expert is in one tier at most.
A tier's price is the benefit density (probability * fetch time / size) of the first expert that a feasible
choice leaves out: who is out comes in at price * (1 + h), who is in goes out when bytes are needed and it is
below price * (1 - h). So usage never passes a limit and nothing moves while probabilities stand still.
Letters: N experts of all layers together.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from errors import UserError

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
) -> Placement:
    """Where each expert should be next.

    likely    float [N]: probability of use; size int [N] bytes; `tiers`: the device, RAM
    running   experts that the running layer needs: on the device, and counted first
    last_use  int [N]: ties go to the latest use, then to the lower number
    UserError where the running layer alone does not fit the device.
    """
    order = _order(len(size), last_use)
    pinned = np.zeros(len(size), np.bool_)
    pinned[list(running)] = True
    if size[pinned].sum() > tiers[0].limit_bytes:
        raise UserError(
            f"the running layer needs {int(size[pinned].sum())} bytes on a device of {tiers[0].limit_bytes}"
        )

    def choose(inside, candidates, pinned, tier: Tier):
        density = likely * tier.fetch_seconds / size
        offer = Offer(density, size, candidates, pinned, order[np.argsort(-density[order], kind="stable")])
        return _choose(inside & candidates | pinned, offer, tier.limit_bytes, hysteresis)

    on_device, price = choose(before.tier == DEVICE, np.ones(len(size), np.bool_), pinned, tiers[0])
    in_ram, ram_price = choose(before.tier <= RAM, ~on_device, np.zeros_like(pinned), tiers[1])
    tier = np.where(on_device, DEVICE, np.where(in_ram, RAM, DISK)).astype(np.uint8)
    return Placement(tier, (price, ram_price))


@dataclass(frozen=True)
class Offer:
    """What a tier chooses from."""

    density: np.ndarray  # float64 [N]
    size: np.ndarray  # int [N]
    candidates: np.ndarray  # bool [N]
    pinned: np.ndarray  # bool [N]: chosen in any case
    best_first: np.ndarray  # int [N]


def _order(experts: int, last_use: np.ndarray | None) -> np.ndarray:
    """int [N]: numbers in the order in which equals are preferred."""
    if last_use is None:
        return np.arange(experts)
    return np.lexsort((np.arange(experts), -np.asarray(last_use)))


def _choose(chosen, offer: Offer, limit_bytes: int, hysteresis: float) -> tuple[np.ndarray, float]:
    """(bool [N] who is in the tier next, its price), from who is in it now."""
    price = _price(offer, limit_bytes)
    chosen = _fitting(chosen, offer, limit_bytes, np.inf)
    for expert in offer.best_first:
        wanted = offer.candidates[expert] and offer.density[expert] > 0
        if not wanted or chosen[expert] or offer.density[expert] < price * (1 + hysteresis):
            continue
        room = limit_bytes - int(offer.size[expert])
        rest = _fitting(chosen, offer, room, price * (1 - hysteresis))
        if offer.size[rest].sum() <= room:
            chosen = rest
            chosen[expert] = True
    return chosen, price


def _price(offer: Offer, limit_bytes: int) -> float:
    """Density of the best expert that does not fit when the best come first, 0 where all fit."""
    left = limit_bytes - int(offer.size[offer.pinned].sum())
    for expert in offer.best_first:
        if offer.pinned[expert] or not offer.candidates[expert]:
            continue
        if offer.size[expert] > left:
            return float(offer.density[expert])
        left -= int(offer.size[expert])
    return 0.0


def _fitting(chosen, offer: Offer, limit_bytes: int, below: float) -> np.ndarray:
    """`chosen` without the worst, one by one, those below a density, until it fits or none may go."""
    rest = chosen.copy()
    used = int(offer.size[rest].sum())
    for expert in offer.best_first[::-1]:
        if used <= limit_bytes:
            break
        if rest[expert] and not offer.pinned[expert] and offer.density[expert] < below:
            rest[expert] = False
            used -= int(offer.size[expert])
    return rest
