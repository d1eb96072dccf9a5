"""Statistics of the routing so far that tell of an expert's next use, for a model of any size.

All features are logarithms of how much likelier than by chance something is, so one set of weights serves
layers and models of any size: decaying counts of uses, and which experts tend to follow those of this step
and of the last one. One row of every array is one cache (or layer). Letters: E experts a layer, F features.
"""

from math import log
from typing import NamedTuple

import numpy as np

from dwellmoe.cache.kernel.jit import helper
from dwellmoe.cache.learned.uses import in_layer
from dwellmoe.cache.learned.weights import check_shapes, load_weights
from dwellmoe.cache.memory import check_memory

DECAYS = (0.9, 0.998)  # of `ml_habits`
FOLLOWING = ((0, 0), (1, 1), (1, 0))  # (row of `after`, how many steps back the followed experts were)
FOLLOWING_NAMES = ("follows", "follows the last", "follows later")
NAMES = (*(f"uses fading by {decay}" for decay in DECAYS), *FOLLOWING_NAMES)
LAYOUT = "; ".join(NAMES)
MAX_WIDTH = 32  # experts of a request; what follows a wider one (a prompt's chunk) is not counted
PSEUDOCOUNT = 8.0  # uses after which the observed frequency weighs as much as the prior
PRIOR_PSEUDOCOUNT = 4.0  # token steps, likewise, for the prior itself


class RoutingStatistics(NamedTuple):
    decayed: np.ndarray  # float64 [caches, decays, E]: decaying counts of uses
    steps: np.ndarray  # float64 [caches, decays]: token steps, decaying alike
    count: np.ndarray  # float64 [caches, E]: all uses
    step: np.ndarray  # int64 [caches]: the latest token step, -1 for none
    first: np.ndarray  # int64 [caches]: the first one since the cache was emptied
    chosen: np.ndarray  # int32 [layers, 3, MAX_WIDTH]: experts of this step, of the last, of the one before
    width: np.ndarray  # int64 [layers, 3]: how many
    after: np.ndarray  # float32 [layers, 2, E, E]: how often one (two) steps after the first was the second
    seen: np.ndarray  # float32 [layers, 2, E]: how often that could be seen
    rarity: np.ndarray  # float64 [layers, E]: token steps for each use of an expert
    likelier: np.ndarray  # float64 [layers, FOLLOWING, E]: products of how much likelier than the prior
    stale: np.ndarray  # bool [layers]: whether the two above are of an earlier step
    decays: np.ndarray  # float64 [decays]

    @classmethod
    def allocate(
        cls, caches: int, experts: int, layers: int, decays: tuple[float, ...] = DECAYS
    ) -> "RoutingStatistics":
        each = experts * caches // layers
        check_memory(8 * layers * each * each, f"what follows what among {layers} layers x {each} experts")
        return cls(
            decayed=np.zeros((caches, len(decays), experts)),
            steps=np.zeros((caches, len(decays))),
            count=np.zeros((caches, experts)),
            step=np.full(caches, -1, np.int64),
            first=np.zeros(caches, np.int64),
            chosen=np.zeros((layers, 3, MAX_WIDTH), np.int32),
            width=np.zeros((layers, 3), np.int64),
            after=np.zeros((layers, 2, each, each), np.float32),
            seen=np.zeros((layers, 2, each), np.float32),
            rarity=np.zeros((layers, each)),
            likelier=np.ones((layers, len(FOLLOWING), each)),
            stale=np.ones(layers, np.bool_),
            decays=np.array(decays),
        )


def load_habits(path: str) -> np.ndarray:
    """float64 [F]: the weights of `ml_habits` in a file, or the shipped ones where `path` is empty."""
    tensors, _ = load_weights(path, "ml_habits", LAYOUT)
    check_shapes(path, tensors, {"weight": (len(NAMES),)})
    return tensors["weight"].astype(np.float64)


@helper
def reset(statistics, cache):
    """Forgets the uses; which expert follows which is a property of the model and stays."""
    statistics.decayed[cache, :, :] = 0
    statistics.steps[cache, :] = 0
    statistics.count[cache, :] = 0
    statistics.step[cache] = -1
    layers = statistics.width.shape[0] // statistics.step.shape[0]
    statistics.width[cache * layers : (cache + 1) * layers, :] = 0


@helper
def count_request(statistics, cache, layer, ids, first, last, step):
    """Counts a request of `layer` at token step `step`."""
    decay(statistics, cache, step)
    for i in range(first, last):
        statistics.count[cache, ids[i]] += 1
        for rate in range(len(statistics.decays)):
            statistics.decayed[cache, rate, ids[i]] += 1
    push_back(statistics.chosen[layer], statistics.width[layer])
    if last - first <= MAX_WIDTH:
        begin = (layer - cache) * statistics.after.shape[3]
        statistics.width[layer, 0] = last - first
        for i in range(first, last):
            statistics.chosen[layer, 0, i - first] = ids[i] - begin
    for back in range(2):
        follow(statistics, layer, back)
    statistics.stale[layer] = True


@helper
def decay(statistics, cache, step):
    """One more token step for all counts, or several."""
    if statistics.step[cache] < 0:
        statistics.first[cache] = step
        statistics.step[cache] = step - 1
    passed = step - statistics.step[cache]
    if passed > 0:
        statistics.step[cache] = step
        for rate in range(len(statistics.decays)):
            kept = statistics.decays[rate] if passed == 1 else statistics.decays[rate] ** passed
            for expert in range(statistics.decayed.shape[2]):
                statistics.decayed[cache, rate, expert] *= kept
            statistics.steps[cache, rate] = statistics.steps[cache, rate] * kept + 1


@helper
def push_back(chosen, width):
    """This step becomes the last one."""
    for back in range(2, 0, -1):
        width[back] = width[back - 1]
        for i in range(width[back]):
            chosen[back, i] = chosen[back - 1, i]
    width[0] = 0


@helper
def follow(statistics, layer, back):
    """Counts that this step's experts were chosen `back` + 1 steps after those of that step."""
    chosen, width = statistics.chosen[layer], statistics.width[layer]
    for one in range(width[back + 1] if width[0] > 0 else 0):
        before = chosen[back + 1, one]
        statistics.seen[layer, back, before] += 1
        for other in range(width[0]):
            statistics.after[layer, back, before, chosen[0, other]] += 1


@helper
def write_features(statistics, cache, expert, x):
    """Writes the features of one expert, after the uses of the latest request of its layer, to x [F]."""
    each = statistics.after.shape[3]
    layer, own = in_layer(cache, expert, each, statistics.count.shape[1])
    if statistics.stale[layer]:
        compare(statistics, cache, layer)
    chance = chance_of(statistics, layer)
    for rate in range(len(statistics.decays)):
        seen = statistics.decayed[cache, rate, expert] + chance
        x[rate] = log(seen / ((statistics.steps[cache, rate] + 1) * chance))
    for kind in range(len(FOLLOWING)):
        width = statistics.width[layer, FOLLOWING[kind][1]]
        x[len(statistics.decays) + kind] = log(statistics.likelier[layer, kind, own]) / max(1, width)


@helper
def chance_of(statistics, layer):
    return max(1.0, float(statistics.width[layer, 0])) / statistics.after.shape[3]


@helper
def compare(statistics, cache, layer):
    """For all experts of a layer: how much likelier than the prior each is after the steps it may follow."""
    statistics.stale[layer] = False
    each = statistics.after.shape[3]
    begin = (layer - cache) * each
    pseudocount = PRIOR_PSEUDOCOUNT * chance_of(statistics, layer)
    steps = statistics.step[cache] - statistics.first[cache] + 1 + PRIOR_PSEUDOCOUNT
    count, rarity = statistics.count[cache, begin : begin + each], statistics.rarity[layer]
    for own in range(len(count)):
        rarity[own] = steps / (count[own] + pseudocount)
    for kind in range(len(FOLLOWING)):
        back, step = FOLLOWING[kind]
        after, seen = statistics.after[layer, back], statistics.seen[layer, back]
        product = statistics.likelier[layer, kind]
        product[:] = 1.0
        for i in range(statistics.width[layer, step]):
            before = statistics.chosen[layer, step, i]
            multiply(product, after[before], seen[before], rarity)


@helper
def multiply(product, after, seen, rarity):
    scale = 1.0 / (seen + PSEUDOCOUNT)
    for own in range(len(product)):
        product[own] *= (after[own] * rarity[own] + PSEUDOCOUNT) * scale
