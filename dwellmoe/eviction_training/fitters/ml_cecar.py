"""Fits `ml_cecar`: two nets a layer, from recency and frequency to the wait as a share of a horizon."""

import numpy as np
import torch

from dwellmoe.cache.progress import Progress
from dwellmoe.cache.trace import RoutingTrace
from dwellmoe.eviction_training.fit import FitSettings, Fitted
from dwellmoe.eviction_training.mlp import Batches, LayerNets, horizon_label, long_horizon, train
from dwellmoe.eviction_training.requests import Split
from dwellmoe.eviction_training.tables import distances, recency_and_frequency, requested

HIDDEN, C0 = 32, 36
BATCHES_AN_EPOCH = 300


def fit(split: Split, settings: FitSettings, progress: Progress | None = None) -> Fitted:
    """Both horizons at once; the loss is the sum of both mean squared errors."""
    long = long_horizon(split.train.num_experts)
    short = long // 2
    seeds = {"short": settings.seed, "long": settings.seed + 1}
    layers = split.train.layers
    pair = {name: LayerNets(layers, 2, HIDDEN, 1, seed) for name, seed in seeds.items()}

    def loss(batch: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        x, y = batch
        guesses = [pair[name](x)[..., 0] for name in ("short", "long")]
        return sum(((guess - y[..., i]) ** 2).mean() for i, guess in enumerate(guesses))  # type: ignore[return-value]

    data, judging = (
        Batches(*table(part, short, long), BATCHES_AN_EPOCH, settings.seed)
        for part in (split.train, split.validation)
    )
    log = train(torch.nn.ModuleDict(pair), loss, data, judging, settings.epochs, progress)
    tensors = {f"{name}.{key}": value for name, nets in pair.items() for key, value in nets.arrays().items()}
    return Fitted(tensors, {"c0": C0, "h_short": short, "h_long": long}, log)


def table(trace: RoutingTrace, short: int, long: int) -> tuple[np.ndarray, np.ndarray]:
    """(x, y), both [L, T * E, 2]: features of each expert after each step, labels of both horizons."""
    x, y = [], []
    for layer in range(trace.layers):
        ids, starts = requested(trace, layer)
        both = recency_and_frequency(ids, starts, trace.num_experts).reshape(-1, 2, trace.num_experts)
        distance = distances(ids, starts, trace.num_experts).ravel()
        x.append(both.transpose(0, 2, 1).reshape(-1, 2))
        y.append(np.stack([horizon_label(distance, short), horizon_label(distance, long)], axis=-1))
    return np.stack(x), np.stack(y)
