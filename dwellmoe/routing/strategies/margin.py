"""Margin: a resident takes the place of a missing expert where that loses little of the routing weight."""

from dataclasses import dataclass

import numpy as np

from dwellmoe.routing.strategies.base import RoutingContext, allowed, check, first_of, in_rows, ranking


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
        own = in_rows(context.own_TK)
        weight_T1 = context.score_TE[own].sum(axis=1, keepdims=True)
        share_TE = context.score_TE / np.maximum(weight_T1, np.finfo(np.float32).tiny)
        missing_TK = np.where(context.resident_E[context.own_TK], np.inf, share_TE[own])
        order = in_rows(np.argsort(missing_TK, axis=1, kind="stable"))
        leaving_TK = context.own_TK[order]
        spare_TE = allowed(context) & ~first_of(context.own_TK, context.top_k, context.rank_TE.shape[1])
        best_TE = np.where(spare_TE, context.rank_TE, -np.inf)
        entering_TK = ranking(best_TE, context.own_TK)[:, : context.top_k]
        gained_TK = np.where(spare_TE, share_TE, -np.inf)[in_rows(entering_TK)]
        lost_TK = missing_TK[order] - gained_TK
        return np.where(lost_TK < self.loss, entering_TK, leaving_TK)


strategy = Margin
