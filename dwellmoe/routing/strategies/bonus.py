"""A bonus for resident experts, as CECAR has it, and how the slots after the first are filled."""

from dataclasses import dataclass

import numpy as np

from dwellmoe.errors import UserError
from dwellmoe.routing.strategies.base import (
    RoutingContext,
    allowed,
    check,
    emptied,
    first_of,
    front,
    in_rows,
    ranking,
)

FILLS = ("resident", "drop", "none")


@dataclass(frozen=True, kw_only=True)
class ResidentBonus:
    """CECAR's re-routing: z'_e = z_e + scale * Delta * alpha_e for residents; a subclass defines alpha.

    scale  multiplies Delta; 0 is no bonus
    m      Delta = z_(1) - z_(m+1), the largest less the (m+1)th; 0 means K
    tau    the first so many of the new ranking are kept, resident or not; 0 means the larger half of K
    fill   resident: after them only residents, until there are K (others by rank if residents run out);
           drop: of the first K only those that are resident; none: the first K as they are
    """

    fill: str = "resident"
    tau: int = 0
    m: int = 8
    scale: float = 1.0

    def __post_init__(self) -> None:
        if self.fill not in FILLS:
            raise UserError(f"routing strategy: fill must be one of {', '.join(FILLS)}, got '{self.fill}'")
        for option in ("tau", "m", "scale"):
            check(type(self).__name__.lower(), option, getattr(self, option), lambda v: v >= 0, "at least 0")

    def alpha(self, context: RoutingContext) -> np.ndarray:
        """float [E] or [T, E]: the share of Delta that a resident gets, 0 to 1."""
        raise NotImplementedError

    def choose(self, context: RoutingContext) -> np.ndarray:
        bonus_TE = self.scale * delta(context, self.m)[:, None] * self.alpha(context)
        claim_TE = context.rank_TE + np.where(context.resident_E, bonus_TE, 0.0)
        return filled(context, ranking(claim_TE, context.own_TK), self.tau, self.fill)


def delta(context: RoutingContext, m: int) -> np.ndarray:
    """float [T]: z_(1) - z_(m+1) of what the router ranks by; with fewer experts, down to the last."""
    sorted_TE = -np.sort(-context.rank_TE, axis=1)
    ranked_T = np.isfinite(sorted_TE).sum(axis=1)
    last_T = np.minimum(m or context.top_k, ranked_T - 1)
    return sorted_TE[:, 0] - sorted_TE[in_rows(last_T[:, None])][:, 0]


def filled(context: RoutingContext, order_TE: np.ndarray, tau: int, fill: str) -> np.ndarray:
    """The choice from a ranking: the first `tau` (0: the larger half of K), the rest by the rule `fill`."""
    top_k = context.top_k
    tau = min(tau or -(-top_k // 2), top_k)
    first_TK = order_TE[:, :top_k]
    if fill == "none":
        return first_TK
    if fill == "drop":
        kept_TK = context.resident_E[first_TK]
        kept_TK[:, :tau] = True
        return emptied(first_TK, kept_TK)
    return front(order_TE, first_of(order_TE, tau) | allowed(context), top_k)
