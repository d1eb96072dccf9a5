"""FlashMoE's learned eviction: one net a layer guesses from all experts' uses how soon each comes back."""

from typing import NamedTuple

import numpy as np

from dwellmoe.cache.kernel.jit import helper
from dwellmoe.cache.learned import uses
from dwellmoe.cache.learned.nets import Nets, nets_of, run
from dwellmoe.cache.learned.order import ResidentOrder
from dwellmoe.cache.learned.uses import Uses
from dwellmoe.cache.learned.weights import depths, load_weights
from dwellmoe.errors import UserError

LAYOUT = "r of all experts, then f of all experts"


class MlFlashmoe(NamedTuple):
    """Victim: the farthest guessed next use.

    The nets serve models with as many experts a layer as they were trained for, or fewer.
    """

    seats: ResidentOrder
    uses: Uses
    nets: Nets
    guess: np.ndarray  # float32 [layers, E of the nets]: as of the layer's last request
    stale: np.ndarray  # bool [layers]
    x: np.ndarray  # float32 [caches, inputs]
    hidden: np.ndarray  # float32 [caches, 2, H]

    lookahead = "none"
    LAYOUT = LAYOUT

    @classmethod
    def allocate(cls, caches: int, experts: int, capacity: np.ndarray, layers: int, *, weights: str = ""):
        tensors, _ = load_weights(weights, "ml_flashmoe", LAYOUT)
        nets = nets_of(tensors)
        trained, width = len(nets.in_bias), nets.out_bias.shape[1]
        each = experts * caches // layers
        if each > width:
            raise UserError(f"ml_flashmoe: its weights are for {width} experts a layer, the model has {each}")
        return cls(
            ResidentOrder.allocate(caches, experts),
            Uses.allocate(caches, experts),
            nets.turned(depths(layers, trained)),
            np.zeros((layers, width), np.float32),
            np.ones(layers, np.bool_),
            np.zeros((caches, 2 * width), np.float32),
            np.zeros((caches, 2, nets.in_bias.shape[1]), np.float32),
        )

    def clear(self, cache):
        uses.forget(self.uses, cache)

    def watch(self, cache, layer, ids, first, last, now):
        uses.watch(self.uses, cache, ids, first, last, now.tick)
        self.stale[layer] = True

    def rate(self, cache, expert, now):
        caches, experts = self.seats.worth.shape
        each = experts * caches // len(self.guess)
        layer, own = uses.in_layer(cache, expert, each, experts)
        if self.stale[layer]:
            self.stale[layer] = False
            x, hidden = self.x[cache], self.hidden[cache]
            write_inputs(self.uses, cache, (layer - cache) * each, each, now.tick, x)
            run(self.nets, layer, x, hidden[0], hidden[1], self.guess[layer])
        return -self.guess[layer, own]


@helper
def write_inputs(state, cache, begin, experts, tick, x):
    """The features of `experts` experts from number `begin` on, laid out as LAYOUT says."""
    last, count = state.last[cache, begin : begin + experts], state.count[cache, begin : begin + experts]
    width, most = len(x) // 2, state.most[cache]
    for expert in range(len(last)):  # two plain loops over views become vector instructions
        x[expert] = uses.recency(last[expert], tick)
    for expert in range(len(count)):
        x[width + expert] = uses.frequency(count[expert], most)


policy = MlFlashmoe
