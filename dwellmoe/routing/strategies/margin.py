"""Ours: a resident takes the place of a missing expert where that costs little of the routing weight."""

from dataclasses import dataclass

import numpy as np

from dwellmoe.routing.strategies.base import RoutingContext, allowed, check, first_of, in_rows, ranking


@dataclass(frozen=True, kw_only=True)
class Margin:
    """The missing experts of the router's choice, lightest first, change places with the best residents
    outside of it, as long as a swap loses less than `loss` of the weight of the router's choice.

    A swap of one expert for another changes a layer's output by about the difference of their weights, not of
    their logits: a limit on it spares the experts that matter, however widely logits spread. The dial is in
    one unit for every family: the share of its choice's weight that a token may lose with one swap.
    """

    loss: float = 0.12

    def __post_init__(self) -> None:
        check("margin", "loss", self.loss, lambda v: v >= 0, "at least 0")

    def choose(self, seen: RoutingContext) -> np.ndarray:
        own = in_rows(seen.own_TK)
        weight_T1 = seen.score_TE[own].sum(axis=1, keepdims=True)
        share_TE = seen.score_TE / np.maximum(weight_T1, np.finfo(np.float32).tiny)
        missing_TK = np.where(seen.resident_E[seen.own_TK], np.inf, share_TE[own])
        order = in_rows(np.argsort(missing_TK, axis=1, kind="stable"))
        leaving_TK = seen.own_TK[order]
        spare_TE = allowed(seen) & ~first_of(seen.own_TK, seen.top_k, seen.rank_TE.shape[1])
        best_TE = np.where(spare_TE, seen.rank_TE, -np.inf)
        coming_TK = ranking(best_TE, seen.own_TK)[:, : seen.top_k]
        gained_TK = np.where(spare_TE, share_TE, -np.inf)[in_rows(coming_TK)]
        lost_TK = missing_TK[order] - gained_TK
        return np.where(lost_TK < self.loss, coming_TK, leaving_TK)


strategy = Margin
