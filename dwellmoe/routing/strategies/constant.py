"""The same bonus for every resident."""

from dataclasses import dataclass

import numpy as np

from dwellmoe.routing.strategies.base import RoutingContext, check
from dwellmoe.routing.strategies.bonus import ResidentBonus


@dataclass(frozen=True, kw_only=True)
class Constant(ResidentBonus):
    """alpha_e = 0.5 by default."""

    share: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        check("constant", "share", self.share, lambda share: share >= 0, "at least 0")

    def alpha(self, context: RoutingContext) -> np.ndarray:
        return np.full(context.rank_TE.shape[1], self.share)


strategy = Constant
