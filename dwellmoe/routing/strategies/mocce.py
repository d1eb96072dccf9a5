"""Cache-Prior: a bonus for residents in units of the layer's usual range of logits (arXiv 2412.00099)."""

from dataclasses import dataclass

import numpy as np

from dwellmoe.routing.strategies.base import RoutingContext, check, first_of, ranking


@dataclass(frozen=True, kw_only=True)
class Mocce:
    """z'_e = z_e + strength * d * [e resident or among the `always` best]; then the K largest z'.

    d is the running range of z in the layer. `strength` is the paper's lambda, `always` its J.
    """

    strength: float = 0.2
    always: int = 2

    def __post_init__(self) -> None:
        check("mocce", "strength", self.strength, lambda v: v >= 0, "at least 0")
        check("mocce", "always", self.always, lambda v: v >= 0, "at least 0")

    def choose(self, context: RoutingContext) -> np.ndarray:
        best_TE = first_of(ranking(context.rank_TE, context.own_TK), self.always)
        claim_TE = context.rank_TE + self.strength * context.spread * (context.resident_E | best_TE)
        return ranking(claim_TE, context.own_TK)[:, : context.top_k]


strategy = Mocce
