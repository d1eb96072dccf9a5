"""Margin: a resident takes the place of a missing expert where that loses little of the routing weight."""

from dataclasses import dataclass

import numpy as np

from dwellmoe.routing.strategies.base import RoutingContext, check, share_of_choice, swaps_of


@dataclass(frozen=True, kw_only=True)
class Margin:
    """Swaps the missing experts of the router's choice, lightest first, for the best residents outside it, as
    long as a swap loses less than `loss` of the weight of that choice.

    A swap changes a layer's output by about the difference of the two weights, not of the logits: a limit on
    it spares the experts that matter, however widely logits spread. `loss` has one unit for every family: the
    share of its choice's weight that a token may lose with one swap.
    """

    loss: float = 0.12

    def __post_init__(self) -> None:
        check("margin", "loss", self.loss, lambda v: v >= 0, "at least 0")

    def choose(self, context: RoutingContext) -> np.ndarray:
        swaps = swaps_of(context, share_of_choice(context), context.rank_TE)
        return np.where(swaps.lost_TK - swaps.gained_TK < self.loss, swaps.entering_TK, swaps.leaving_TK)


strategy = Margin
