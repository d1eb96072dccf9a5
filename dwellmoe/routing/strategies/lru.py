"""A bonus for residents by how recently they were used."""

from dataclasses import dataclass

import numpy as np

from dwellmoe.routing.strategies.base import RoutingContext
from dwellmoe.routing.strategies.bonus import ResidentBonus


@dataclass(frozen=True, kw_only=True)
class Lru(ResidentBonus):
    """alpha_e = last use / latest last use of a resident, counted in token steps of the layer."""

    def alpha(self, context: RoutingContext) -> np.ndarray:
        last_E = np.where(context.resident_E, np.maximum(context.step + 1 - context.lag_E, 0), 0)
        return last_E / max(last_E.max(), 1)


strategy = Lru
