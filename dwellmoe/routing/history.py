"""What a routing strategy may know of one layer's past: steps, uses of its experts, the range of ranks.

Letters: T rows, E experts, K chosen experts a token.
"""

from dataclasses import dataclass, field

import numpy as np

from dwellmoe.cache.trace import SIGNED_EMPTY
from dwellmoe.routing.strategies.base import NEVER, RoutingContext

SPREAD_DECAY = 0.99
"""Of the running range of logits, as Cache-Prior has it (arXiv 2412.00099)."""


@dataclass
class History:
    """What a strategy may know of one layer's past."""

    experts: int
    step: int = 0
    spread: float | None = None
    last_E: np.ndarray = field(init=False)
    uses_E: np.ndarray = field(init=False)

    def __post_init__(self) -> None:
        self.last_E = np.full(self.experts, -NEVER)
        self.uses_E = np.zeros(self.experts, np.int64)

    def add_ranks(self, rank_TE: np.ndarray) -> None:
        """Cache-Prior's running range: d <- 0.99 d + 0.01 (max z - min z), started with the first range."""
        finite_TE = np.isfinite(rank_TE)
        highest_T = np.where(finite_TE, rank_TE, -np.inf).max(axis=1)
        lowest_T = np.where(finite_TE, rank_TE, np.inf).min(axis=1)
        for spread in (highest_T - lowest_T).tolist():
            before = spread if self.spread is None else self.spread
            self.spread = SPREAD_DECAY * before + (1 - SPREAD_DECAY) * spread

    def add_uses(self, chosen_TK: np.ndarray) -> None:
        """One token step, in which these rows ran together."""
        used = chosen_TK[chosen_TK != SIGNED_EMPTY]
        self.step += 1
        self.last_E[used] = self.step
        np.add.at(self.uses_E, used, 1)

    def context(
        self,
        rank_TE: np.ndarray,
        score_TE: np.ndarray,
        own_TK: np.ndarray,
        *,
        resident_E: np.ndarray,
        layer: int,
        importance_T: np.ndarray | None = None,
    ) -> RoutingContext:
        """All that a strategy may look at for rows that choose together; their ranks count from now on."""
        self.add_ranks(rank_TE)
        return RoutingContext(
            rank_TE=rank_TE,
            score_TE=score_TE,
            own_TK=own_TK,
            resident_E=resident_E,
            lag_E=self.lag_E,
            uses_E=self.uses_E,
            spread=self.spread or 0.0,
            layer=layer,
            step=self.step,
            importance_T=importance_T,
        )

    @property
    def lag_E(self) -> np.ndarray:
        return np.minimum(self.step + 1 - self.last_E, NEVER)
