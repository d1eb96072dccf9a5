"""ODP: DES that leaves the most important prompt tokens all their experts."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from dwellmoe.routing.strategies.base import RoutingContext, check
from dwellmoe.routing.strategies.des import Des


@dataclass(frozen=True, kw_only=True)
class Odp(Des):
    """The `protect` share of a prompt's tokens with the highest importance |h_j|_1 times the mean attention
    that later tokens pay to j keeps K experts (`routing/token_importance.py`). In decode it is DES.
    """

    protect: float = 0.02

    WANTS_IMPORTANCE: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        check("odp", "protect", self.protect, lambda v: 0 <= v <= 1, "between 0 and 1")

    def _spared(self, context: RoutingContext) -> np.ndarray:
        spared_T = np.zeros(len(context.own_TK), np.bool_)
        if context.importance_T is not None:
            count = int(np.ceil(self.protect * len(spared_T)))
            spared_T[np.argsort(-context.importance_T, kind="stable")[:count]] = True
        return spared_T


strategy = Odp
