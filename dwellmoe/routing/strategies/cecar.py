"""CECAR: residents that will be used again soon get a larger bonus."""

from dataclasses import dataclass

import numpy as np

from dwellmoe.routing.strategies.base import RoutingContext
from dwellmoe.routing.strategies.bonus import ResidentBonus


@dataclass(frozen=True, kw_only=True)
class Cecar(ResidentBonus):
    """alpha_e = 1 - s_e / (max_{j in S} s_j + 1e-5), s the predicted reuse distance, S the residents.

    The prediction is the lag: an expert used n steps ago is expected n steps ahead.
    """

    def alpha(self, context: RoutingContext) -> np.ndarray:
        distance_E = np.where(context.resident_E, context.lag_E, 0).astype(np.float64)
        return 1 - distance_E / (distance_E.max() + 1e-5)


strategy = Cecar
