"""Regret: a few swaps for residents of high rank, under a limit on the score that they lose together."""

from dataclasses import dataclass

import numpy as np

from dwellmoe.routing.strategies.base import (
    RoutingContext,
    check,
    first_of,
    ranking,
    share_of_choice,
    swaps_of,
)


@dataclass(frozen=True, kw_only=True)
class Regret:
    """Swaps up to `swaps` missing experts of the router's choice for residents among its `within` best, as
    many as keep the token's regret within `budget`.

    The regret of a token in a layer is the score that its choice lost: the summed score of the router's own
    choice less that of the experts that run, as a share of the former, which is one unit for every family.
    The missing experts of the lowest score leave and the residents of the highest score enter: no other swaps
    lose less.

    within  rank up to which a resident may enter; 0: four times K
    """

    budget: float = 0.12
    swaps: int = 2
    within: int = 0

    def __post_init__(self) -> None:
        for option in ("budget", "swaps", "within"):
            check("regret", option, getattr(self, option), lambda v: v >= 0, "at least 0")

    def choose(self, context: RoutingContext) -> np.ndarray:
        share_TE = share_of_choice(context)
        best_first_TE = ranking(context.rank_TE, context.own_TK)
        near_TE = first_of(best_first_TE, self.within or 4 * context.top_k)
        swaps = swaps_of(context, share_TE, np.where(near_TE, share_TE, -np.inf))
        regret_TK = np.cumsum(swaps.lost_TK - swaps.gained_TK, axis=1)
        within_TK = np.isfinite(regret_TK) & (regret_TK <= self.budget)
        swapped_TK = within_TK & (np.arange(context.top_k) < self.swaps)
        return np.where(swapped_TK, swaps.entering_TK, swaps.leaving_TK)


strategy = Regret
