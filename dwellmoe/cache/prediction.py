"""How good predictions of use are, and how two predictors are fused.

Letters: N pairs of a token and a layer, T tokens, L layers, E experts a layer, K chosen.
"""

from collections.abc import Sequence

import numpy as np

from dwellmoe.cache.memory import check_memory
from dwellmoe.cache.predictors import Predictor, make_predictor
from dwellmoe.cache.trace import DECODE, EMPTY, RoutingTrace

MARGIN = 1e-4  # probabilities stay this far from 0 and 1: a sure mistake costs 9 nats, not infinitely many
BINS = 10
ETAS = np.linspace(0, 1, 21)


def used_of(trace: RoutingTrace) -> list[np.ndarray]:
    """bool [T, L, E] of each request's decoded tokens."""
    rows = np.flatnonzero(trace.phase == DECODE)
    tokens, layers = len(rows), trace.layers
    check_memory(
        2 * tokens * layers * trace.num_experts,
        f"the experts of {tokens} tokens in {layers} layers x {trace.num_experts}",
    )
    experts, request = np.asarray(trace.experts[rows]).astype(np.int64), trace.request[rows]
    used = np.zeros((*experts.shape[:2], trace.num_experts + 1), np.bool_)
    np.put_along_axis(used, np.where(experts == EMPTY, trace.num_experts, experts), True, axis=2)
    return [used[request == name, :, :-1] for name in dict.fromkeys(request.tolist())]


def predictions(spec: str, learned: RoutingTrace, requests: Sequence[np.ndarray]) -> np.ndarray:
    """float64 [T, L, E]: the prediction for each token of `requests`, after learning from `learned`.

    A layer is watched only after it was predicted.
    """
    predictor = make_predictor(spec, learned.layers, learned.num_experts)
    predictor.learn(np.concatenate(used_of(learned)))
    predicted = []
    for used_TLE in requests:
        predictor.start()
        for used_LE in used_TLE:
            predicted.append([_predict_then_watch(predictor, *each) for each in enumerate(used_LE)])
    return np.array(predicted)


def _predict_then_watch(predictor: Predictor, layer: int, used_E: np.ndarray) -> np.ndarray:
    predicted_E = predictor.predict(layer)
    predictor.watch(layer, used_E)
    return predicted_E


def quality(predicted_TLE: np.ndarray, used_TLE: np.ndarray) -> dict[str, float]:
    """`log_loss` (nats an expert), `recall_at_k` and `recall_at_2k` (share of a token's K among the K and the
    2K likeliest) and `calibration_error` (mean distance of predicted and actual share, in ten bins weighed
    by size).
    """
    p = np.clip(predicted_TLE, MARGIN, 1 - MARGIN)
    chosen_TL = used_TLE.sum(axis=2)
    rank_TLE = np.argsort(np.argsort(-p, axis=2, kind="stable"), axis=2)
    recalled, recalled_2k = (
        (used_TLE & (rank_TLE < times * chosen_TL[..., None])).sum() / chosen_TL.sum() for times in (1, 2)
    )
    bins = np.minimum((p * BINS).astype(int), BINS - 1).ravel()
    size = np.bincount(bins, None, BINS)
    predicted = np.bincount(bins, p.ravel(), BINS)
    actual = np.bincount(bins, used_TLE.ravel().astype(float), BINS)
    error = np.abs(predicted - actual).sum() / size.sum()
    return {
        "log_loss": log_loss(predicted_TLE, used_TLE),
        "recall_at_k": float(recalled),
        "recall_at_2k": float(recalled_2k),
        "calibration_error": float(error),
    }


def log_loss(predicted_TLE: np.ndarray, used_TLE: np.ndarray) -> float:
    """Nats an expert."""
    p = np.clip(predicted_TLE, MARGIN, 1 - MARGIN)
    return float(-np.log(np.where(used_TLE, p, 1 - p)).mean())


class Calibration:
    """From a score to a probability: the actual share of use at similar scores, layer by layer.

    Scores of a layer are cut into `PARTS` of equal size; the actual share is interpolated between their means
    and never falls as the score rises. Where a layer has no scores (NaN) each expert has its prior.
    """

    PARTS = 64

    def __init__(self, score_TLE: np.ndarray, used_TLE: np.ndarray) -> None:
        self.prior_LE = used_TLE.mean(axis=0)
        self.curves = [
            self._curve(score_TLE[:, layer].ravel(), used_TLE[:, layer].ravel())
            for layer in range(score_TLE.shape[1])
        ]

    def _curve(self, score: np.ndarray, used: np.ndarray) -> tuple[np.ndarray, np.ndarray] | None:
        if np.isnan(score).any():
            return None
        order = np.argsort(score, kind="stable")
        parts = np.array_split(order, min(self.PARTS, len(order)))
        middles, shares = (np.array([values[part].mean() for part in parts]) for values in (score, used))
        return middles, np.maximum.accumulate(shares)

    def __call__(self, score_TLE: np.ndarray) -> np.ndarray:
        """float64 [T, L, E]"""
        predicted_TLE = np.empty(score_TLE.shape)
        for layer, curve in enumerate(self.curves):
            if curve is None:
                predicted_TLE[:, layer] = self.prior_LE[layer]
            else:
                predicted_TLE[:, layer] = np.interp(score_TLE[:, layer], *curve)
        return predicted_TLE


def fuse(
    one: np.ndarray, other: np.ndarray, eta: float, distance: float | np.ndarray = 0.0, gamma: float = 0.02
) -> np.ndarray:
    """((1 - eta) * one + eta * other) * exp(-gamma * distance): `distance` in layers until the expert's layer
    runs again.
    """
    return ((1 - eta) * one + eta * other) * np.exp(-gamma * np.asarray(distance))


def fit_eta(one: np.ndarray, other: np.ndarray, used: np.ndarray) -> float:
    """The share of `other` with the least log-loss on validation tokens."""
    losses = [log_loss(fuse(one, other, eta), used) for eta in ETAS]
    return float(ETAS[int(np.argmin(losses))])
