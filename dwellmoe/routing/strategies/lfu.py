"""A bonus for residents by how often they were used."""

from dataclasses import dataclass

import numpy as np

from dwellmoe.routing.strategies.base import RoutingContext
from dwellmoe.routing.strategies.bonus import ResidentBonus


@dataclass(frozen=True, kw_only=True)
class Lfu(ResidentBonus):
    """alpha_e = uses / most uses of a resident."""

    def alpha(self, context: RoutingContext) -> np.ndarray:
        uses_E = np.where(context.resident_E, context.uses_E, 0)
        return uses_E / max(uses_E.max(), 1)


strategy = Lfu
