"""The contract of routing strategies, `RoutingStrategy`, and how experts are taken from a ranking.

A strategy is a frozen dataclass whose keyword-only fields are its options, in `strategies/<name>.py` under
the name `strategy` or registered from a user's file. Its choice needs no weights: they are made from the
router's original scores (`routing/router_scores.py`).

Letters: T rows (tokens that choose together), E experts, K chosen experts a token.
"""

from collections.abc import Callable
from typing import NamedTuple, Protocol

import numpy as np

from dwellmoe.cache.trace import SIGNED_EMPTY
from dwellmoe.errors import UserError

NEVER = 1 << 30
"""Lag of an expert that was never used."""


class RoutingContext(NamedTuple):
    """All that a strategy may look at."""

    rank_TE: np.ndarray
    """float: what the router ranks by (logits, or score + bias); -inf: the router may not choose it."""
    score_TE: np.ndarray
    """float: original scores, of which weights are made; for a strategy with `KEEPS_WEIGHTS` the weights that
    experts have beside the router's own choice.
    """
    own_TK: np.ndarray
    """int: the router's own choice, best rank first."""
    resident_E: np.ndarray
    """bool: the experts that were in memory before these rows."""
    lag_E: np.ndarray
    """int: token steps since the last use in this layer, 1 for the step before; NEVER."""
    uses_E: np.ndarray
    """int: uses in this layer so far."""
    spread: float
    """Running range of `rank` in this layer, these rows included (Cache-Prior)."""
    layer: int
    step: int
    """Token steps of this layer so far: a seed for strategies that draw."""
    importance_T: np.ndarray | None = None
    """float: importance of prompt tokens, only for a strategy with `WANTS_IMPORTANCE`."""

    @property
    def top_k(self) -> int:
        return self.own_TK.shape[1]


class RoutingStrategy(Protocol):
    """A pure function of what a router and a cache give to the experts that run.

    Weights of a changed choice add up to what the router's own do, if the router renormalises. With a class
    attribute `KEEPS_WEIGHTS = True` nothing is renormalised: each expert has the weight it has in `score_TE`.
    """

    def choose(self, context: RoutingContext) -> np.ndarray:
        """int [T, K]: distinct experts a row, in any order; -1 is a slot that is left empty.

        Never an expert that the router may not choose, as long as it may choose another.
        """
        ...


def in_rows(columns_TK: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """An index of these columns of each row. Tokens come one row at a time, on which `take_along_axis` takes
    more than twice as long.
    """
    return np.arange(len(columns_TK))[:, None], columns_TK


def ranking(claim_TE: np.ndarray, own_TK: np.ndarray) -> np.ndarray:
    """All experts, largest claim first, int [T, E]; ties go to the router's own choice, in its order."""
    tie_TE = np.full(claim_TE.shape, own_TK.shape[1])
    tie_TE[in_rows(own_TK)] = np.arange(own_TK.shape[1])
    return np.lexsort((tie_TE, -claim_TE), axis=-1)


def front(order_TE: np.ndarray, preferred_TE: np.ndarray, count: int) -> np.ndarray:
    """The first `count` of a ranking in which the preferred (bool by expert) go before all others."""
    ranked_TE = preferred_TE[in_rows(order_TE)]
    moved_TE = np.argsort(~ranked_TE, axis=1, kind="stable")[:, :count]
    return order_TE[in_rows(moved_TE)]


def emptied(indices_TK: np.ndarray, kept_TK: np.ndarray) -> np.ndarray:
    """The kept ones moved to the front, the other slots empty."""
    order_TK = np.argsort(~kept_TK, axis=1, kind="stable")
    return np.where(kept_TK, indices_TK, SIGNED_EMPTY)[in_rows(order_TK)]


def first_of(order_TE: np.ndarray, count: int, experts: int = 0) -> np.ndarray:
    """bool [T, E] by expert: whether it is among the first `count` of a ranking (of all `experts`)."""
    among_TE = np.zeros((len(order_TE), experts or order_TE.shape[1]), np.bool_)
    among_TE[in_rows(order_TE[:, :count])] = True
    return among_TE


def allowed(context: RoutingContext) -> np.ndarray:
    """bool [T, E]: residents that the router may choose."""
    return context.resident_E & np.isfinite(context.rank_TE)


def keeps_weights(strategy: RoutingStrategy) -> bool:
    """Whether the strategy's choice runs with the weights of `score_TE`, not renormalised."""
    return getattr(strategy, "KEEPS_WEIGHTS", False)


class Swaps(NamedTuple):
    """Missing experts of the router's choice, and residents that may take their places, one by one [T, K]."""

    leaving_TK: np.ndarray
    """int: the router's choice, missing experts first, those of the smallest worth before the others."""
    entering_TK: np.ndarray
    """int: residents outside of it, best first."""
    lost_TK: np.ndarray
    """float: worth of the one that leaves; inf for an expert that is resident."""
    gained_TK: np.ndarray
    """float: worth of the one that enters; -inf where no resident is left."""


def swaps_of(context: RoutingContext, worth_TE: np.ndarray, rank_TE: np.ndarray) -> Swaps:
    """The swaps of each token; residents enter in the order of `rank_TE`, never where that is -inf."""
    own = in_rows(context.own_TK)
    missing_TK = np.where(context.resident_E[context.own_TK], np.inf, worth_TE[own])
    order = in_rows(np.argsort(missing_TK, axis=1, kind="stable"))
    spare_TE = allowed(context) & np.isfinite(rank_TE)
    spare_TE &= ~first_of(context.own_TK, context.top_k, rank_TE.shape[1])
    best_TE = np.where(spare_TE, rank_TE, -np.inf)
    entering_TK = ranking(best_TE, context.own_TK)[:, : context.top_k]
    return Swaps(
        leaving_TK=context.own_TK[order],
        entering_TK=entering_TK,
        lost_TK=missing_TK[order],
        gained_TK=np.where(spare_TE, worth_TE, -np.inf)[in_rows(entering_TK)],
    )


def share_of_choice(context: RoutingContext) -> np.ndarray:
    """float [T, E]: each expert's score as a share of what the router's own choice has together."""
    weight_T1 = context.score_TE[in_rows(context.own_TK)].sum(axis=1, keepdims=True)
    return context.score_TE / np.maximum(weight_T1, np.finfo(np.float32).tiny)


def check(name: str, option: str, value: float, holds: Callable[[float], bool], rule: str) -> None:
    """UserError unless an option's value is as the rule says."""
    if not holds(value):
        raise UserError(f"routing strategy '{name}': {option} must be {rule}, got {value}")
