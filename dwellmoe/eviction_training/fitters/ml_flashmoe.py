"""Fits `ml_flashmoe`: a net a layer from all experts' recencies and frequencies to all their next uses."""

import numpy as np
import torch

from dwellmoe.cache.progress import Progress
from dwellmoe.cache.trace import RoutingTrace
from dwellmoe.eviction_training.fit import FitSettings, Fitted
from dwellmoe.eviction_training.mlp import Batches, LayerNets, horizon_label, long_horizon, train
from dwellmoe.eviction_training.requests import Split
from dwellmoe.eviction_training.tables import distances, recency_and_frequency, requested

HIDDEN, BATCHES_AN_EPOCH = 64, 150


def fit(split: Split, settings: FitSettings, progress: Progress | None = None) -> Fitted:
    """Mean squared error on the long horizon."""
    experts, layers = split.train.num_experts, split.train.layers
    long = long_horizon(experts)
    nets = LayerNets(layers, 2 * experts, HIDDEN, experts, settings.seed)

    def loss(batch: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        return ((nets(batch[0]) - batch[1]) ** 2).mean()

    data, judging = (
        Batches(*table(part, long), BATCHES_AN_EPOCH, settings.seed)
        for part in (split.train, split.validation)
    )
    log = train(nets, loss, data, judging, settings.epochs, progress)
    return Fitted(nets.arrays(), {"h_long": long}, log)


def table(trace: RoutingTrace, long: int) -> tuple[np.ndarray, np.ndarray]:
    """(x [L, T, 2E], y [L, T, E])."""
    x, y = [], []
    for layer in range(trace.layers):
        ids, starts = requested(trace, layer)
        x.append(recency_and_frequency(ids, starts, trace.num_experts))
        y.append(horizon_label(distances(ids, starts, trace.num_experts), long))
    return np.stack(x), np.stack(y)
