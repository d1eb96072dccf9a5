"""A random bonus for residents: what any cleverer bonus has to beat."""

from dataclasses import dataclass

import numpy as np

from dwellmoe.routing.strategies.base import RoutingContext, check
from dwellmoe.routing.strategies.bonus import ResidentBonus


@dataclass(frozen=True, kw_only=True)
class Random(ResidentBonus):
    """alpha_e uniform in [0, 1), drawn anew each step from (seed, layer, step): the same again each time."""

    seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        check("random", "seed", self.seed, lambda seed: seed >= 0, "at least 0")

    def alpha(self, context: RoutingContext) -> np.ndarray:
        return np.random.default_rng((self.seed, context.layer, context.step)).random(context.rank_TE.shape)


strategy = Random
