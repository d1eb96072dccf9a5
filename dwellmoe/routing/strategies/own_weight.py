"""Own weight: the best resident takes the place of a missing expert of small weight, and keeps its own."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from dwellmoe.routing.strategies.base import RoutingContext, check, swaps_of


@dataclass(frozen=True, kw_only=True)
class OwnWeight:
    """Swaps the missing experts of the router's choice whose routing weight is under `below`, lightest first,
    for the residents outside that choice which the router ranks highest.

    Nothing is renormalised: an expert that enters runs with the weight that the router gives it beside its
    own choice, the others keep theirs. For routers that renormalise, that weight is the score times the
    factor of the router's own choice; the weights of a token may then add up to less.
    """

    below: float = 0.04

    KEEPS_WEIGHTS: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check("own_weight", "below", self.below, lambda v: v >= 0, "at least 0")

    def choose(self, context: RoutingContext) -> np.ndarray:
        swaps = swaps_of(context, context.score_TE, context.rank_TE)
        light_TK = (swaps.lost_TK < self.below) & (swaps.gained_TK > -np.inf)
        return np.where(light_TK, swaps.entering_TK, swaps.leaving_TK)


strategy = OwnWeight
