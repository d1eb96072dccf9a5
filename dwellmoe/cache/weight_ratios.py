"""Thresholds for running fewer than K experts: how steeply a token's routing weights fall off.

Letters: T tokens, L layers, K experts chosen, N counts between K/2 and K at which a token may stop.
"""

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dwellmoe.cache.trace import RoutingTrace
from dwellmoe.errors import UserError, first_line
from dwellmoe.files import replacing

FORMAT = "expert-count-thresholds"


@dataclass(frozen=True)
class Thresholds:
    """Medians of w_j / w_{j+1}, a token's weights sorted; `median_LN[l][n]` is of layer l and j = kept[n]."""

    model: str
    top_k: int
    median_LN: Sequence[Sequence[float]]

    @property
    def kept(self) -> range:
        return stopping_counts(self.top_k)

    def save(self, path: str | os.PathLike) -> None:
        """Writes a small JSON file; it appears complete or not at all."""
        table = {"format": FORMAT, "version": 1, "model": self.model, "top_k": self.top_k}
        table |= {"kept": list(self.kept), "median_ratio": [list(row) for row in self.median_LN]}
        with replacing(path) as file:
            file.write(json.dumps(table, indent=1).encode())

    @classmethod
    def load(cls, path: str | os.PathLike) -> "Thresholds":
        """UserError for a file that is missing or of another format."""
        try:
            table = json.loads(Path(path).read_text(encoding="utf-8-sig"))
            if table["format"] != FORMAT:
                raise ValueError(f"format is '{table['format']}'")
            found = cls(
                str(table["model"]), int(table["top_k"]), np.array(table["median_ratio"], float).tolist()
            )
            if any(len(row) != len(found.kept) for row in found.median_LN):
                raise ValueError(f"median_ratio needs {len(found.kept)} numbers a layer")
        except OSError as error:
            raise UserError(f"thresholds '{path}': {error.strerror}") from None
        except (KeyError, TypeError, ValueError, RecursionError) as error:
            raise UserError(f"thresholds '{path}': not a file of thresholds: {first_line(error)}") from None
        return found


def stopping_counts(top_k: int) -> range:
    """How many experts a token may stop at before K: 4 and 5 of 6, 3 of 4, none of 2."""
    return range(top_k // 2 + 1, top_k)


def ratios(weights_TK: np.ndarray) -> np.ndarray:
    """w_j / w_{j+1} at the counts at which a token may stop, float [T, N], of sorted rows; infinite where
    w_{j+1} is 0.
    """
    counts = stopping_counts(weights_TK.shape[-1])
    upper = weights_TK[..., counts.start - 1 : counts.stop - 1].astype(np.float64)
    lower = weights_TK[..., counts.start : counts.stop].astype(np.float64)
    return np.divide(upper, lower, out=np.full(upper.shape, np.inf), where=lower > 0)


def kept_counts(weights_TK: np.ndarray, medians_N: Sequence[float]) -> np.ndarray:
    """Experts each sorted row keeps, int [T]: the first j with w_j / w_{j+1} above its threshold, else K."""
    top_k = weights_TK.shape[-1]
    counts = stopping_counts(top_k)
    if not len(counts):
        return np.full(len(weights_TK), top_k)
    steep_TN = ratios(weights_TK) > np.asarray(medians_N)
    return np.where(steep_TN.any(axis=1), counts.start + steep_TN.argmax(axis=1), top_k)


def thresholds_of(trace: RoutingTrace) -> Thresholds:
    """The medians over all tokens of a trace that holds `weights`. UserError where it does not."""
    if trace.weights is None:
        raise UserError("the trace holds no routing weights to calibrate thresholds on")
    medians_LN = np.median(ratios(-np.sort(-trace.weights, axis=-1)), axis=0)
    return Thresholds(trace.model, trace.top_k, medians_LN.tolist())
