"""DES: a token whose weights fall off steeply runs fewer experts; knows nothing of residency."""

import functools
from dataclasses import dataclass

import numpy as np

from dwellmoe.cache.weight_ratios import Thresholds, kept_counts
from dwellmoe.errors import UserError
from dwellmoe.routing.strategies.base import RoutingContext, emptied, in_rows

read_thresholds = functools.cache(Thresholds.load)


@dataclass(frozen=True, kw_only=True)
class Des:
    """With w_1 >= ... >= w_K keeps the first j above K/2 with w_j / w_{j+1} > threshold, else K.

    thresholds  file of the medians a layer, made by `simulate.py calibrate`
    """

    thresholds: str = ""

    def __post_init__(self) -> None:
        if not self.thresholds:
            name = type(self).__name__.lower()
            raise UserError(
                f"routing strategy '{name}' needs {name}:thresholds=FILE, made by simulate.py calibrate"
            )
        read_thresholds(self.thresholds)

    def choose(self, seen: RoutingContext) -> np.ndarray:
        weights_TK = seen.score_TE[in_rows(seen.own_TK)]
        order = in_rows(np.argsort(-weights_TK, axis=1, kind="stable"))
        counts_T = kept_counts(weights_TK[order], self._medians(seen))
        counts_T = np.where(self._spared(seen), seen.top_k, counts_T)
        return emptied(seen.own_TK[order], np.arange(seen.top_k) < counts_T[:, None])

    def _medians(self, seen: RoutingContext):
        found = read_thresholds(self.thresholds)
        if found.top_k != seen.top_k or seen.layer >= len(found.median_LN):
            raise UserError(
                f"thresholds '{self.thresholds}' are for {len(found.median_LN)} layers that choose "
                f"{found.top_k}: this model's choose {seen.top_k}"
            )
        return found.median_LN[seen.layer]

    def _spared(self, seen: RoutingContext) -> np.ndarray:
        """bool [T]: rows that keep all their experts."""
        return np.zeros(len(seen.own_TK), np.bool_)


strategy = Des
