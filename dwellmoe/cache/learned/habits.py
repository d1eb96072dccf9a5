"""Knows what the routing so far tells of an expert's next use, whatever the model; knows no weights.

All features are logarithms of how much likelier than by chance something is, so one set of weights serves
layers and models of any size: counts of uses that fade, and which experts tend to follow those of this step
and of the last one. One row of every array is one cache (or layer). Letters: E experts a layer, F features.
"""

from math import log
from typing import NamedTuple

import numpy as np

from dwellmoe.cache.kernel.jit import helper
from dwellmoe.cache.learned.uses import in_layer

DECAYS = (0.9, 0.998)
DECAY_RATES = len(DECAYS)
FOLLOWING = ((0, 0), (1, 1), (1, 0))  # (row of `after`, how many steps back the followed experts were)
NAMES = (*(f"uses fading by {decay}" for decay in DECAYS), "follows", "follows the last", "follows later")
LAYOUT = "; ".join(NAMES)
WIDEST = 32  # experts of a request; of a wider one (a prompt's chunk) it is not asked what follows
DOUBT = 8.0  # uses after which what was seen weighs as much as what is usual
USUAL_DOUBT = 4.0  # token steps, likewise


class RoutingStatistics(NamedTuple):
    faded: np.ndarray  # float64 [caches, DECAY_RATES, E]: uses, fading
    steps: np.ndarray  # float64 [caches, DECAY_RATES]: token steps, fading alike
    count: np.ndarray  # float64 [caches, E]: all uses
    tick: np.ndarray  # int64 [caches]: the latest token step, -1 for none
    first: np.ndarray  # int64 [caches]: the first one since the cache was emptied
    asked: np.ndarray  # int32 [layers, 3, WIDEST]: of this step, of the last, of the one before; in the layer
    width: np.ndarray  # int64 [layers, 3]: how many
    after: np.ndarray  # float32 [layers, 2, E, E]: how often one (two) steps after the first was the second
    seen: np.ndarray  # float32 [layers, 2, E]: how often that could be seen
    rarity: np.ndarray  # float64 [layers, E]: token steps for each use of an expert
    likelier: np.ndarray  # float64 [layers, FOLLOWING, E]: products of how much likelier than usual
    stale: np.ndarray  # bool [layers]: whether the two above are of an earlier step
    decays: np.ndarray  # float64 [DECAY_RATES]

    @classmethod
    def allocate(cls, caches: int, experts: int, layers: int) -> "RoutingStatistics":
        each = experts * caches // layers
        return cls(
            np.zeros((caches, DECAY_RATES, experts)),
            np.zeros((caches, DECAY_RATES)),
            np.zeros((caches, experts)),
            np.full(caches, -1, np.int64),
            np.zeros(caches, np.int64),
            np.zeros((layers, 3, WIDEST), np.int32),
            np.zeros((layers, 3), np.int64),
            np.zeros((layers, 2, each, each), np.float32),
            np.zeros((layers, 2, each), np.float32),
            np.zeros((layers, each)),
            np.ones((layers, len(FOLLOWING), each)),
            np.ones(layers, np.bool_),
            np.array(DECAYS),
        )


@helper
def forget(habits, cache):
    """The uses are forgotten; what follows what is a habit of the model and stays."""
    habits.faded[cache, :, :] = 0
    habits.steps[cache, :] = 0
    habits.count[cache, :] = 0
    habits.tick[cache] = -1
    layers = habits.width.shape[0] // habits.tick.shape[0]
    habits.width[cache * layers : (cache + 1) * layers, :] = 0


@helper
def watch(habits, cache, layer, ids, first, last, tick):
    """Takes note of a request of `layer` at token step `tick`."""
    fade(habits, cache, tick)
    for at in range(first, last):
        habits.count[cache, ids[at]] += 1
        for pace in range(DECAY_RATES):
            habits.faded[cache, pace, ids[at]] += 1
    push_back(habits.asked[layer], habits.width[layer])
    if last - first <= WIDEST:
        begin = (layer - cache) * habits.after.shape[3]
        habits.width[layer, 0] = last - first
        for at in range(first, last):
            habits.asked[layer, 0, at - first] = ids[at] - begin
    for back in range(2):
        follow(habits, layer, back)
    habits.stale[layer] = True


@helper
def fade(habits, cache, tick):
    """One more token step for all counts, or several."""
    if habits.tick[cache] < 0:
        habits.first[cache] = tick
        habits.tick[cache] = tick - 1
    passed = tick - habits.tick[cache]
    if passed > 0:
        habits.tick[cache] = tick
        for pace in range(DECAY_RATES):
            kept = habits.decays[pace] if passed == 1 else habits.decays[pace] ** passed
            for expert in range(habits.faded.shape[2]):
                habits.faded[cache, pace, expert] *= kept
            habits.steps[cache, pace] = habits.steps[cache, pace] * kept + 1


@helper
def push_back(asked, width):
    """This step becomes the last one."""
    for back in range(2, 0, -1):
        width[back] = width[back - 1]
        for place in range(width[back]):
            asked[back, place] = asked[back - 1, place]
    width[0] = 0


@helper
def follow(habits, layer, back):
    """Counts that this step's experts came `back` + 1 steps after those of that step."""
    asked, width = habits.asked[layer], habits.width[layer]
    for one in range(width[back + 1] if width[0] > 0 else 0):
        before = asked[back + 1, one]
        habits.seen[layer, back, before] += 1
        for other in range(width[0]):
            habits.after[layer, back, before, asked[0, other]] += 1


@helper
def describe(habits, cache, expert, x):
    """Writes the features of one expert, after the uses of the latest request of its layer, to x [F]."""
    each = habits.after.shape[3]
    layer, own = in_layer(cache, expert, each, habits.count.shape[1])
    if habits.stale[layer]:
        compare(habits, cache, layer)
    chance = chance_of(habits, layer)
    for pace in range(DECAY_RATES):
        seen = habits.faded[cache, pace, expert] + chance
        x[pace] = log(seen / ((habits.steps[cache, pace] + 1) * chance))
    for kind in range(len(FOLLOWING)):
        width = habits.width[layer, FOLLOWING[kind][1]]
        x[DECAY_RATES + kind] = log(habits.likelier[layer, kind, own]) / max(1, width)


@helper
def chance_of(habits, layer):
    return max(1.0, float(habits.width[layer, 0])) / habits.after.shape[3]


@helper
def compare(habits, cache, layer):
    """For all experts of a layer: how much likelier than usual each is after the steps that it may follow."""
    habits.stale[layer] = False
    each = habits.after.shape[3]
    begin = (layer - cache) * each
    doubt = USUAL_DOUBT * chance_of(habits, layer)
    steps = habits.tick[cache] - habits.first[cache] + 1 + USUAL_DOUBT
    count, rarity = habits.count[cache, begin : begin + each], habits.rarity[layer]
    for own in range(len(count)):
        rarity[own] = steps / (count[own] + doubt)
    for kind in range(len(FOLLOWING)):
        back, step = FOLLOWING[kind]
        after, seen = habits.after[layer, back], habits.seen[layer, back]
        product = habits.likelier[layer, kind]
        product[:] = 1.0
        for place in range(habits.width[layer, step]):
            before = habits.asked[layer, step, place]
            multiply(product, after[before], seen[before], rarity)


@helper
def multiply(product, after, seen, rarity):
    scale = 1.0 / (seen + DOUBT)
    for own in range(len(product)):
        product[own] *= (after[own] * rarity[own] + DOUBT) * scale
