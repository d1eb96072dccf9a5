"""Max rank: residents may replace missing experts, as long as they rank high enough."""

from dataclasses import dataclass

import numpy as np

from dwellmoe.routing.strategies.base import RoutingContext, allowed, check, first_of, front, ranking


@dataclass(frozen=True, kw_only=True)
class MaxRank:
    """The `always` best are kept; the rest of the K are residents among the `within` best (0: twice K), best
    first, and if those run out the best of the others.
    """

    always: int = 1
    within: int = 0

    def __post_init__(self) -> None:
        check("max_rank", "always", self.always, lambda v: v >= 0, "at least 0")
        check("max_rank", "within", self.within, lambda v: v >= 0, "at least 0")

    def choose(self, context: RoutingContext) -> np.ndarray:
        order_TE = ranking(context.rank_TE, context.own_TK)
        within = max(self.within or 2 * context.top_k, context.top_k)
        near_TE = first_of(order_TE, within) & allowed(context)
        always = min(self.always, context.top_k)
        return front(order_TE, first_of(order_TE, always) | near_TE, context.top_k)


strategy = MaxRank
