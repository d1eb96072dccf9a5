"""Fits `ml_habits`: logistic regression of "used within h token steps", h chosen by the validation requests.

Letters: N rows, F features.
"""

import numpy as np

from dwellmoe.cache.learned.routing_statistics import LAYOUT, NAMES
from dwellmoe.cache.progress import Progress
from dwellmoe.cache.trace import RoutingTrace
from dwellmoe.eviction_training.fit import FitSettings, Fitted, validation_hit_rate
from dwellmoe.eviction_training.requests import Split
from dwellmoe.eviction_training.tables import distances, habit_features, requested

HORIZONS = (2, 3, 4, 6, 8)
MOST_ROWS = 400_000  # of all layers; there are only few weights
MOST_STEPS = 12
PATIENCE = 1
RIDGE = 1e-3
COLD_STEPS = 128  # half of the rows come from caches that have seen no more steps than that


def fit(split: Split, settings: FitSettings, progress: Progress | None = None) -> Fitted:
    """Weights of the horizon with the best hit rate on the validation requests."""
    rng = np.random.default_rng(settings.seed)
    x_NF, distance_N = rows(split.train, rng)
    judge_NF, judge_distance_N = rows(split.validation, rng)
    tried, log = {}, []
    for done, horizon in enumerate(HORIZONS, start=1):
        weight, loss = regress(x_NF, distance_N <= horizon, judge_NF, judge_distance_N <= horizon)
        tried[horizon] = {"weight": weight}
        rate = validation_hit_rate(split, "ml_habits", LAYOUT, tried[horizon], settings)
        log.append({"horizon": horizon, "validation_log_loss": loss, "validation_hit_rate": rate})
        if progress:
            progress(done, len(HORIZONS))
    best = max(log, key=lambda row: row["validation_hit_rate"])
    return Fitted(tried[best["horizon"]], {"horizon": best["horizon"]}, log)


def rows(trace: RoutingTrace, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """(features [N, F], steps to the next use [N]) of experts that the step itself does not need."""
    kept = [_layer_rows(trace, layer, MOST_ROWS // trace.layers, rng) for layer in range(trace.layers)]
    features, distance = zip(*kept, strict=True)
    return np.concatenate(features), np.concatenate(distance)


def _layer_rows(trace: RoutingTrace, layer: int, most: int, rng) -> tuple[np.ndarray, np.ndarray]:
    ids, starts = requested(trace, layer)
    distance_TE = distances(ids, starts, trace.num_experts)
    waiting_TE = np.ones(distance_TE.shape, np.bool_)
    waiting_TE[np.repeat(np.arange(len(starts) - 1), np.diff(starts)), ids] = False
    flat = np.flatnonzero(waiting_TE)
    flat = rng.choice(flat, min(len(flat), most), replace=False)
    parts = np.array_split(flat, 2)
    whole = habit_features(ids, starts, trace.num_experts).reshape(-1, len(NAMES))[parts[0]]
    cold = _cold_features(ids, starts, trace.num_experts).reshape(-1, len(NAMES))[parts[1]]
    return np.concatenate([whole, cold]), distance_TE.ravel()[np.concatenate(parts)]


def _cold_features(ids: np.ndarray, starts: np.ndarray, experts: int) -> np.ndarray:
    """Features of a cache that starts cold every COLD_STEPS steps, as on a short trace."""
    begins = range(0, len(starts) - 1, COLD_STEPS)
    pieces = [starts[begin : begin + COLD_STEPS + 1] for begin in begins]
    return np.concatenate([habit_features(ids, piece, experts) for piece in pieces])


def regress(x_NF, y_N, judge_NF, judge_y_N) -> tuple[np.ndarray, float]:
    """(weights [F], log-loss on the validation rows), as `regress_with_intercept`."""
    weight, _, loss = regress_with_intercept(x_NF, y_N, judge_NF, judge_y_N)
    return weight, loss


def regress_with_intercept(x_NF, y_N, judge_NF, judge_y_N) -> tuple[np.ndarray, float, float]:
    """(weights [F], intercept, log-loss on the validation rows) by Newton's method, until that loss no longer
    falls.
    """
    mean, spread = x_NF.mean(axis=0), x_NF.std(axis=0) + 1e-9
    z, judge = _standard(x_NF, mean, spread), _standard(judge_NF, mean, spread)
    weight = best = np.zeros(z.shape[1])
    best_loss, worse = np.inf, 0
    for _ in range(MOST_STEPS):
        weight = weight - _newton_step(z, y_N, weight)
        loss = log_loss(judge @ weight, judge_y_N)
        worse = 0 if loss < best_loss - 1e-6 else worse + 1
        best, best_loss = (weight, loss) if loss < best_loss else (best, best_loss)
        if worse >= PATIENCE:
            break
    weight = best[:-1] / spread
    return weight, float(best[-1] - weight @ mean), float(best_loss)


def _standard(x_NF: np.ndarray, mean: np.ndarray, spread: np.ndarray) -> np.ndarray:
    return np.column_stack([(x_NF - mean) / spread, np.ones(len(x_NF))])


def _newton_step(z: np.ndarray, y_N: np.ndarray, weight: np.ndarray) -> np.ndarray:
    guess = 1 / (1 + np.exp(-z @ weight))
    slope = z.T @ (guess - y_N) / len(z) + RIDGE * weight
    curvature = (z * (guess * (1 - guess))[:, None]).T @ z / len(z) + RIDGE * np.eye(len(weight))
    return np.linalg.solve(curvature, slope)


def log_loss(score_N: np.ndarray, y_N: np.ndarray) -> float:
    """Mean negative log-likelihood (nats) of yes and no, from scores before the sigmoid."""
    return float(np.mean(np.logaddexp(0, score_N) - score_N * y_N))
