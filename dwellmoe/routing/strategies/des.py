"""DES: a token whose weights fall off steeply runs fewer experts, whatever is resident."""

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

    thresholds  file of the medians a layer, made by `dwellmoe simulate calibrate`
    """

    thresholds: str = ""

    def __post_init__(self) -> None:
        if not self.thresholds:
            name = type(self).__name__.lower()
            raise UserError(
                f"routing strategy '{name}' needs {name}:thresholds=FILE, made by dwellmoe simulate calibrate"
            )
        read_thresholds(self.thresholds)

    def choose(self, context: RoutingContext) -> np.ndarray:
        weights_TK = context.score_TE[in_rows(context.own_TK)]
        order = in_rows(np.argsort(-weights_TK, axis=1, kind="stable"))
        counts_T = kept_counts(weights_TK[order], self._medians(context))
        counts_T = np.where(self._spared(context), context.top_k, counts_T)
        return emptied(context.own_TK[order], np.arange(context.top_k) < counts_T[:, None])

    def _medians(self, context: RoutingContext):
        found = read_thresholds(self.thresholds)
        if found.top_k != context.top_k or context.layer >= len(found.median_LN):
            raise UserError(
                f"thresholds '{self.thresholds}' are for {len(found.median_LN)} layers that choose "
                f"{found.top_k} experts: layer {context.layer} of this model chooses {context.top_k}"
            )
        return found.median_LN[context.layer]

    def _spared(self, context: RoutingContext) -> np.ndarray:
        """bool [T]: rows that keep all their experts."""
        return np.zeros(len(context.own_TK), np.bool_)


strategy = Des
