"""Logistic regression that goes on learning while it runs: how likely experts are used within some horizons.

After a request whose experts were scored, some experts of the layer are noted with their features. Once the
longest horizon has passed it is known within which horizons each was used, and all weights take a step
against the gradient of the log-loss (AdaGrad: Duchi et al., JMLR 12, 2011), so weights fitted elsewhere come
to fit this model and this text. One row of every array is one layer.
Letters: H horizons, F features alike for all horizons, B requests of the longest horizon, N experts noted
after a request.
"""

from math import exp, sqrt
from typing import NamedTuple

import numpy as np

from dwellmoe.cache.kernel.jit import helper

NOTED = 16
LEARNING_RATE = 0.2
FIRST_SQUARES = 200.0
"""Squared gradients that each weight begins with: a first step is small, and a short text changes little."""
NO_EXPERT = -1


class OnlineWeights(NamedTuple):
    weight: np.ndarray  # float64 [layers, H, F + 1]: the last is that of a feature of the horizon's own
    squares: np.ndarray  # float64 [layers, H, F + 1]: sums of squared gradients
    horizon: np.ndarray  # int64 [H], ascending
    rate: np.ndarray  # float64 [1]
    requests: np.ndarray  # int64 [layers]: so far
    following: np.ndarray  # int64 [layers]: the expert that is noted next
    expert: np.ndarray  # int64 [layers, B, N]: noted after each of the last B requests, NO_EXPERT for none
    distance: np.ndarray  # int64 [layers, B, N]: requests until it was used, 0 for not yet
    x: np.ndarray  # float64 [layers, B, N, F]
    own: np.ndarray  # float64 [layers, B, N, H]: each horizon's own feature
    offset: np.ndarray  # float64 [layers, B, N, H]: log-odds that are not learned

    @classmethod
    def allocate(
        cls, weight: np.ndarray, experts: int, horizons: tuple[int, ...], learning_rate: float
    ) -> "OnlineWeights":
        """`weight` [layers, H, F + 1] are the first weights, `experts` those of a layer."""
        layers, _, features = weight.shape
        noted = (layers, horizons[-1], min(NOTED, experts) if learning_rate else 0)
        return cls(
            weight=weight.astype(np.float64),
            squares=np.full(weight.shape, FIRST_SQUARES),
            horizon=np.array(horizons),
            rate=np.array([learning_rate]),
            requests=np.zeros(layers, np.int64),
            following=np.zeros(layers, np.int64),
            expert=np.full(noted, NO_EXPERT, np.int64),
            distance=np.zeros(noted, np.int64),
            x=np.zeros((*noted, features - 1)),
            own=np.zeros((*noted, len(horizons))),
            offset=np.zeros((*noted, len(horizons))),
        )


@helper
def forget(online, layer):
    """Drops what is noted, since the next request does not follow on it; what was learned stays."""
    online.expert[layer, :, :] = NO_EXPERT


@helper
def begin_request(online, layer):
    """Learns from what was noted B requests ago; returns the row that is free for new notes."""
    row = online.requests[layer] % online.expert.shape[1]
    online.requests[layer] += 1
    for i in range(online.expert.shape[2]):
        if online.expert[layer, row, i] != NO_EXPERT:
            learn(online, layer, row, i)
            online.expert[layer, row, i] = NO_EXPERT
    return row


@helper
def next_noted(online, layer, row, i, experts):
    """Notes an expert, each of the layer in turn, and returns it; the caller writes `x`, `own`, `offset`."""
    expert = online.following[layer]
    online.following[layer] = (expert + 1) % experts
    online.expert[layer, row, i] = expert
    online.distance[layer, row, i] = 0
    return expert


@helper
def note_uses(online, layer, row, ids, first, last, begin):
    """A request used `ids[first:last]`; `begin` is the layer's first id, `row` was noted just before it."""
    noted, back = online.expert[layer], online.expert.shape[1]
    for at in range(back):
        for i in range(noted.shape[1]):
            if noted[at, i] == NO_EXPERT or online.distance[layer, at, i] > 0:
                continue
            for used in range(first, last):
                if ids[used] - begin == noted[at, i]:
                    online.distance[layer, at, i] = (row - at) % back + 1


@helper
def learn(online, layer, row, i):
    """One step for the weights of every horizon."""
    distance, x, rate = online.distance[layer, row, i], online.x[layer, row, i], online.rate[0]
    for h in range(len(online.horizon)):
        own, weight, squares = online.own[layer, row, i, h], online.weight[layer, h], online.squares[layer, h]
        error = probability(online, layer, h, x, own, online.offset[layer, row, i, h])
        if 0 < distance <= online.horizon[h]:
            error -= 1.0
        for feature in range(len(x)):
            gradient = error * x[feature]
            squares[feature] += gradient * gradient
            weight[feature] -= rate * gradient / sqrt(squares[feature])
        squares[-1] += (error * own) ** 2
        weight[-1] -= rate * error * own / sqrt(squares[-1])


@helper
def probability(online, layer, h, x, own, offset):
    """Of use within one horizon, from the features x [F], its own one and the log-odds `offset`."""
    weight = online.weight[layer, h]
    odds = offset + weight[len(x)] * own
    for feature in range(len(x)):
        odds += weight[feature] * x[feature]
    return 1.0 / (1.0 + exp(-odds))
