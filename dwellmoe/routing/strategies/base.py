"""Knows what a routing strategy is and the ways of taking experts from a ranking; knows no strategy.

A strategy is a frozen dataclass of its options in `strategies/<name>.py`, exported as `strategy`. Its
`choose(seen) -> indices_TK` is a pure function of a `RoutingContext`: distinct experts a row, in any order, -1 for
a slot that is left empty; never an expert that the router may not choose while it may choose another. Weights
are not its business: they are made from the router's original scores (`routing/router_scores.py`).

Letters: T rows (tokens that choose at the same moment), E experts, K chosen experts a token.
"""

from collections.abc import Callable
from typing import NamedTuple, Protocol

import numpy as np

from dwellmoe.errors import UserError

NEVER = 1 << 30
"""Lag of an expert that was not used yet."""
EMPTY = -1


class RoutingContext(NamedTuple):
    """All that a strategy may look at."""

    rank_TE: np.ndarray
    """float: what the router ranks by (logits, or score + bias); -inf: the router may not choose it."""
    score_TE: np.ndarray
    """float: original scores, of which weights are made."""
    own_TK: np.ndarray
    """int: the router's own choice, best rank first."""
    resident_E: np.ndarray
    """bool: who was in memory before these rows."""
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
    """float: of prompt tokens, where somebody knows it (`odp`)."""

    @property
    def top_k(self) -> int:
        return self.own_TK.shape[1]


class RoutingStrategy(Protocol):
    """See the module's first lines."""

    def choose(self, seen: RoutingContext) -> np.ndarray: ...


def in_rows(places_TK: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """An index of these places of each row: take_along_axis takes more than twice as long on one row,
    and that is how tokens are taken.
    """
    return np.arange(len(places_TK))[:, None], places_TK


def ranking(claim_TE: np.ndarray, own_TK: np.ndarray) -> np.ndarray:
    """All experts, largest claim first, int [T, E]; ties go to the router's own choice, in its order."""
    place_TE = np.full(claim_TE.shape, own_TK.shape[1])
    place_TE[in_rows(own_TK)] = np.arange(own_TK.shape[1])
    return np.lexsort((place_TE, -claim_TE), axis=-1)


def front(order_TE: np.ndarray, preferred_TE: np.ndarray, places: int) -> np.ndarray:
    """The first `places` of a ranking in which the preferred (bool by expert) go before all others."""
    liked_TE = preferred_TE[in_rows(order_TE)]
    moved_TE = np.argsort(~liked_TE, axis=1, kind="stable")[:, :places]
    return order_TE[in_rows(moved_TE)]


def emptied(indices_TK: np.ndarray, kept_TK: np.ndarray) -> np.ndarray:
    """The kept ones moved to the front, the other slots empty."""
    order_TK = np.argsort(~kept_TK, axis=1, kind="stable")
    return np.where(kept_TK, indices_TK, EMPTY)[in_rows(order_TK)]


def first_of(order_TE: np.ndarray, count: int, experts: int = 0) -> np.ndarray:
    """bool [T, E] by expert: whether it is among the first `count` of a ranking (of all `experts`)."""
    among_TE = np.zeros((len(order_TE), experts or order_TE.shape[1]), np.bool_)
    among_TE[in_rows(order_TE[:, :count])] = True
    return among_TE


def allowed(seen: RoutingContext) -> np.ndarray:
    """bool [T, E]: residents that the router may choose."""
    return seen.resident_E & np.isfinite(seen.rank_TE)


def check(name: str, option: str, value: float, holds: Callable[[float], bool], rule: str) -> None:
    """UserError unless an option's value is as the rule says."""
    if not holds(value):
        raise UserError(f"routing strategy '{name}': {option} must be {rule}, got {value}")
