"""No re-routing: the router's own choice, to measure everything else against."""

from dataclasses import dataclass

import numpy as np

from dwellmoe.routing.strategies.base import RoutingContext


@dataclass(frozen=True, kw_only=True)
class Own:
    """What the router chose."""

    def choose(self, context: RoutingContext) -> np.ndarray:
        return context.own_TK


strategy = Own
