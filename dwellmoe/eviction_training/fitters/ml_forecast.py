"""Fits `ml_forecast` by log-loss: weights that serve every model, then a net for each layer of this one.

Letters: N rows, T token steps, E experts a layer, F features, H horizons.
"""

import numpy as np
import torch

from dwellmoe.cache.learned.forecast import HORIZONS, LAYOUT, NAMES
from dwellmoe.cache.progress import Progress
from dwellmoe.cache.replay.forecast_quality import ForecastRow, forecast_quality
from dwellmoe.cache.trace import RoutingTrace
from dwellmoe.errors import UserError
from dwellmoe.eviction_training.fit import FitSettings, Fitted, validation_hit_rate
from dwellmoe.eviction_training.fitters.ml_habits import COLD_STEPS, regress_with_intercept
from dwellmoe.eviction_training.forecast_net import ForecastNet, LayerSteps, inputs_of, train_net
from dwellmoe.eviction_training.requests import Split
from dwellmoe.eviction_training.tables import distances, forecast_features, requested

MOST_ROWS = 300_000  # of all layers, for the weights that serve every model
MOST_NET_ROWS = 10_000_000  # token steps times experts that the net of one layer learns from
VALUES = {
    "within 1": (1, 0, 0, 0),
    "within 2": (0, 1, 0, 0),
    "within 4": (0, 0, 1, 0),
    "within 8": (0, 0, 0, 1),
    "all alike": (1, 1, 1, 1),
    "the nearest more": (4, 3, 2, 1),
}
"""What use within each horizon may count for eviction; the validation requests choose."""


def fit(split: Split, settings: FitSettings, progress: Progress | None = None) -> Fitted:
    """The log has a row for each layer's net, and one for each of `VALUES`.

    UserError where the validation requests are too short to judge the longest horizon by.
    """
    if split.validation.steps <= max(HORIZONS):
        raise UserError(
            f"ml_forecast: the held-out requests have {split.validation.steps} tokens, and judging needs "
            f"more than {max(HORIZONS)}: give a longer trace or a larger --validation"
        )
    steps = split.train.layers + len(VALUES)
    offset_H = log_odds_of_chance(split.train)
    general_HF = fit_general(split, offset_H, np.random.default_rng(settings.seed))
    layers, log = [], []
    for layer in range(split.train.layers):
        train, judge = (layer_steps(trace, layer, settings.seed) for trace in (split.train, split.validation))
        net = ForecastNet(general_HF, split.train.num_experts, offset_H, settings.seed)
        loss = train_net(net, train, judge, settings.epochs, settings.seed)
        layers.append(net.arrays())
        log.append({"layer": layer, "validation_log_loss": loss})
        if progress:
            progress(layer + 1, steps)
    tensors = {name: np.stack([arrays[name] for arrays in layers]) for name in layers[0]}
    tensors["general"] = general_HF
    for done, (name, value) in enumerate(VALUES.items(), start=split.train.layers + 1):
        tensors["value"] = np.array(value)
        rate = validation_hit_rate(split, "ml_forecast", LAYOUT, tensors, settings)
        log.append({"value": name, "validation_hit_rate": rate})
        if progress:
            progress(done, steps)
    best = max(log[split.train.layers :], key=lambda row: row["validation_hit_rate"])["value"]
    return Fitted(tensors | {"value": np.array(VALUES[best])}, {"value": best}, log)


def judge(split: Split, path: str) -> dict[str, list[ForecastRow]]:
    """How good the forecasts are on the validation requests."""
    return {"forecast": forecast_quality(split.validation, path)}


def log_odds_of_chance(trace: RoutingTrace) -> np.ndarray:
    """float64 [H]: of use within each horizon, were all experts alike."""
    unused_H = (1 - trace.top_k / trace.num_experts) ** np.array(HORIZONS)
    return np.log(1 - unused_H) - np.log(unused_H)


def layer_steps(trace: RoutingTrace, layer: int, seed: int) -> LayerSteps:
    """The token steps of one layer; of very many, a random part."""
    ids, starts = requested(trace, layer)
    most, steps = MOST_NET_ROWS // trace.num_experts, np.arange(trace.steps)
    if trace.steps > most:
        steps = np.sort(np.random.default_rng(seed).choice(steps, most, replace=False))
    features_TEF = forecast_features(ids, starts, trace.num_experts)[steps]
    distance_TE = distances(ids, starts, trace.num_experts)[steps]
    return LayerSteps(*map(torch.from_numpy, (features_TEF, inputs_of(trace, layer)[steps], distance_TE)))


def fit_general(split: Split, offset_H: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """float64 [H, F]: weights for every model, by logistic regression over all layers."""
    x_NF, distance_N = rows(split.train, rng)
    judge_NF, judge_distance_N = rows(split.validation, rng)
    weight_HF = np.empty((len(HORIZONS), len(NAMES)))
    for i, horizon in enumerate(HORIZONS):
        weight_HF[i, :-1], intercept, _ = regress_with_intercept(
            x_NF, distance_N <= horizon, judge_NF, judge_distance_N <= horizon
        )
        weight_HF[i, -1] = intercept - offset_H[i]
    return weight_HF


def rows(trace: RoutingTrace, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """(features [N, F - 1], steps to the next use [N]): half of them of caches that started cold of late."""
    parts = [_layer_rows(trace, layer, MOST_ROWS // trace.layers, rng) for layer in range(trace.layers)]
    features, distance = zip(*parts, strict=True)
    return np.concatenate(features)[:, :-1], np.concatenate(distance)


def _layer_rows(trace: RoutingTrace, layer: int, most: int, rng) -> tuple[np.ndarray, np.ndarray]:
    ids, starts = requested(trace, layer)
    distance_TE = distances(ids, starts, trace.num_experts)
    flat = rng.choice(distance_TE.size, min(distance_TE.size, most), replace=False)
    parts = np.array_split(flat, 2)
    whole = forecast_features(ids, starts, trace.num_experts).reshape(-1, len(NAMES))[parts[0]]
    begins = range(0, len(starts) - 1, COLD_STEPS)
    pieces = [forecast_features(ids, starts[at : at + COLD_STEPS + 1], trace.num_experts) for at in begins]
    cold = np.concatenate(pieces).reshape(-1, len(NAMES))[parts[1]]
    return np.concatenate([whole, cold]), distance_TE.ravel()[np.concatenate(parts)]
