"""Forecast of coming tokens: how likely each expert of a layer is used within the next 1, 2, 4 and 8 of them.

Two parts are added to the log-odds of chance. One serves every model: a weighted sum of statistics of the
routing so far. The other is a net for each layer of the model that the weights were fitted to, whose inputs
are the experts that the last tokens chose in this layer and in those near it; for a model with other layers
or experts it is left out. The weights of the sum and a factor of the net, 1 at first, go on learning from
what is used (`learned/online.py`): so nets of another model of the same shape soon count for little.
Letters: E experts a layer, F features, H horizons, B tokens looked back at, N neighbours, D hidden units.
"""

from math import log
from typing import NamedTuple

import numpy as np

from dwellmoe.cache.kernel.jit import helper
from dwellmoe.cache.learned import online, routing_statistics
from dwellmoe.cache.learned.nets import dense, silu
from dwellmoe.cache.learned.online import LEARNING_RATE, OnlineWeights
from dwellmoe.cache.learned.routing_statistics import FOLLOWING_NAMES, RoutingStatistics
from dwellmoe.cache.learned.uses import in_layer
from dwellmoe.cache.learned.weights import check_shapes, load_weights

HORIZONS = (1, 2, 4, 8)  # token steps
DECAYS = (0.5, 0.8, 0.95, 0.998)
LOOKED_BACK = 3  # this step and the two before
REACH = 4  # layers
NEIGHBOURS = (
    *((-near, 0) for near in range(1, REACH + 1)),
    *((near, 1) for near in range(-REACH, REACH + 1) if near),
)
"""(layers further up, steps back): what is known of the layers around one that runs."""
NAMES = (
    *(f"uses fading by {decay}" for decay in DECAYS),
    *FOLLOWING_NAMES,
    "chosen by this step",
    "constant",
)
LAYOUT = (
    f"within {', '.join(map(str, HORIZONS))} steps; {'; '.join(NAMES)}; "
    f"net on {LOOKED_BACK} steps, {REACH} layers"
)
GENERAL = {"general": (len(HORIZONS), len(NAMES)), "value": (len(HORIZONS),)}
FITTED = {
    "layer": ("L", len(HORIZONS), len(NAMES)),
    "rows": ("L", LOOKED_BACK, "E", "D"),
    "neighbours": ("L", len(NEIGHBOURS), "E", "D"),
    "hidden_bias": ("L", "D"),
    "out": ("L", "D", "O"),
    "out_bias": ("L", "O"),
}


class Forecast(NamedTuple):
    """One row of every array is one layer; the statistics have one for each cache."""

    statistics: RoutingStatistics
    online: OnlineWeights  # of the features and of what the net adds
    rows: np.ndarray  # float32 [layers, B, E, D]: what each chosen expert adds to the hidden units
    neighbours: np.ndarray  # float32 [layers, N, E, D]: likewise
    hidden_bias: np.ndarray  # float32 [layers, D]
    out: np.ndarray  # float32 [layers, D, H * E]
    out_bias: np.ndarray  # float32 [layers, H * E]
    around: np.ndarray  # float32 [layers, D]: what neighbours add as of the layer's latest step
    hidden: np.ndarray  # float32 [layers, D]
    added: np.ndarray  # float32 [layers, H * E]: what the net adds to the log-odds, as of the latest step
    stale: np.ndarray  # bool [layers]: whether that is of an earlier step
    x: np.ndarray  # float64 [caches, F]
    chance: np.ndarray  # float64 [layers, H]: log-odds of use by chance
    p: np.ndarray  # float64 [caches, H]

    @classmethod
    def allocate(
        cls, caches: int, experts: int, layers: int, weights: str, learning_rate: float = LEARNING_RATE
    ) -> "Forecast":
        each = experts * caches // layers
        found = load_forecast(weights, layers, each)
        factor = np.ones((layers, len(HORIZONS), 1))
        first = np.concatenate([found["layer"], factor], axis=2)
        return cls(
            statistics=RoutingStatistics.allocate(caches, experts, layers, DECAYS),
            online=OnlineWeights.allocate(first, each, HORIZONS, learning_rate),
            rows=found["rows"],
            neighbours=found["neighbours"],
            around=np.zeros(found["hidden_bias"].shape, np.float32),
            hidden_bias=found["hidden_bias"],
            out=found["out"],
            out_bias=found["out_bias"],
            hidden=np.zeros(found["hidden_bias"].shape, np.float32),
            added=np.zeros((layers, len(HORIZONS) * each), np.float32),
            stale=np.ones(layers, np.bool_),
            x=np.zeros((caches, len(NAMES))),
            chance=np.zeros((layers, len(HORIZONS))),
            p=np.zeros((caches, len(HORIZONS))),
        )


def load_forecast(path: str, layers: int, experts: int) -> dict[str, np.ndarray]:
    """The tensors of a file for a model of this shape, or of the shipped one where `path` is empty.

    For another shape than the file was fitted to, every layer has the weights that serve all models, and no
    hidden units.
    """
    tensors, _ = load_weights(path, "ml_forecast", LAYOUT)
    check_shapes(path, tensors, {**GENERAL, **FITTED})
    outputs = len(HORIZONS) * tensors["rows"].shape[2]
    check_shapes(path, tensors, {"out": ("L", "D", outputs), "out_bias": ("L", outputs)})
    if is_fitted_to(tensors, layers, experts):
        return tensors
    return tensors | {
        "layer": np.repeat(tensors["general"][None], layers, axis=0),
        "rows": np.zeros((layers, LOOKED_BACK, experts, 0), np.float32),
        "neighbours": np.zeros((layers, len(NEIGHBOURS), experts, 0), np.float32),
        "hidden_bias": np.zeros((layers, 0), np.float32),
        "out": np.zeros((layers, 0, len(HORIZONS) * experts), np.float32),
        "out_bias": np.zeros((layers, len(HORIZONS) * experts), np.float32),
    }


def eviction_value(path: str) -> np.ndarray:
    """float64 [H]: what use within each horizon counts for eviction."""
    tensors, _ = load_weights(path, "ml_forecast", LAYOUT)
    check_shapes(path, tensors, GENERAL)
    return tensors["value"].astype(np.float64)


def is_fitted_to(tensors: dict[str, np.ndarray], layers: int, experts: int) -> bool:
    """Whether the nets of a file are of a model with so many layers and experts a layer."""
    return tensors["rows"].shape[:3] == (layers, LOOKED_BACK, experts)


@helper
def reset(forecast, cache):
    """Forgets the uses; what is known of the model stays."""
    routing_statistics.reset(forecast.statistics, cache)
    layers = len(forecast.stale) // len(forecast.x)
    for layer in range(cache * layers, (cache + 1) * layers):
        online.forget(forecast.online, layer)
        forecast.stale[layer] = True


@helper
def count_request(forecast, cache, layer, ids, first, last, step):
    """Counts a request of `layer` at token step `step`, after learning from it."""
    row = online.begin_request(forecast.online, layer)
    if not forecast.stale[layer]:
        note_experts(forecast, cache, layer, row)
    begin = (layer - cache) * forecast.rows.shape[2]
    online.note_uses(forecast.online, layer, row, ids, first, last, begin)
    routing_statistics.count_request(forecast.statistics, cache, layer, ids, first, last, step)
    forecast.stale[layer] = True


@helper
def note_experts(forecast, cache, layer, row):
    """Notes experts as they are before a request, to learn from what it and the next ones use."""
    each, weights = forecast.rows.shape[2], forecast.online
    for i in range(weights.expert.shape[2]):
        own = online.next_noted(weights, layer, row, i, each)
        expert = (layer - cache) * each + own
        write_features(forecast.statistics, cache, layer, expert, own, weights.x[layer, row, i])
        for horizon in range(len(HORIZONS)):
            weights.own[layer, row, i, horizon] = forecast.added[layer, horizon * each + own]
            weights.offset[layer, row, i, horizon] = forecast.chance[layer, horizon]


@helper
def look_around(forecast, layer, layer_ids, running):
    """Takes what the layers near `layer` requested, `layer_ids` as in `policies/base.py`."""
    around = forecast.around[layer]
    if len(around) == 0:
        return
    around[:] = 0
    for neighbour in range(len(NEIGHBOURS)):
        up, back = NEIGHBOURS[neighbour]
        if 0 <= layer + up < layer_ids.shape[1]:
            ids = layer_ids[running - back, layer + up]
            for i in range(1, ids[0]):
                add_row(around, forecast.neighbours[layer, neighbour, ids[i]])


@helper
def add_row(hidden, row):
    for unit in range(len(hidden)):
        hidden[unit] += row[unit]


@helper
def write_likelihoods(forecast, cache, expert, p):
    """Writes to p [H] how likely one expert is used within each horizon after its layer's latest request."""
    each = forecast.rows.shape[2]
    layer, own = in_layer(cache, expert, each, forecast.statistics.count.shape[1])
    if forecast.stale[layer]:
        forecast.stale[layer] = False
        run_net(forecast, layer)
        write_chance(forecast, layer)
    x = forecast.x[cache]
    write_features(forecast.statistics, cache, layer, expert, own, x)
    for h in range(len(p)):
        added, chance = forecast.added[layer, h * each + own], forecast.chance[layer, h]
        p[h] = online.probability(forecast.online, layer, h, x, added, chance)


@helper
def write_features(statistics, cache, layer, expert, own, x):
    """Writes the features of one expert, in the order of NAMES."""
    routing_statistics.write_features(statistics, cache, expert, x)
    x[len(x) - 2] = 0.0
    for i in range(statistics.width[layer, 0]):
        if statistics.chosen[layer, 0, i] == own:
            x[len(x) - 2] = 1.0
    x[len(x) - 1] = 1.0


@helper
def write_chance(forecast, layer):
    """Log-odds of use within each horizon where all experts are alike."""
    unused = 1.0 - min(0.999, routing_statistics.chance_of(forecast.statistics, layer))
    for horizon in range(len(HORIZONS)):
        power = unused ** HORIZONS[horizon]
        forecast.chance[layer, horizon] = log(1.0 - power) - log(power)


@helper
def run_net(forecast, layer):
    """What the experts that the last steps chose add to the log-odds of all."""
    hidden, statistics = forecast.hidden[layer], forecast.statistics
    for unit in range(len(hidden)):
        hidden[unit] = forecast.hidden_bias[layer, unit] + forecast.around[layer, unit]
    for back in range(LOOKED_BACK):
        for i in range(statistics.width[layer, back]):
            add_row(hidden, forecast.rows[layer, back, statistics.chosen[layer, back, i]])
    silu(hidden)
    dense(forecast.out[layer], forecast.out_bias[layer], hidden, forecast.added[layer])
