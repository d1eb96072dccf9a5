"""FlashMoE's learned eviction: one net a layer predicts every expert's next use from all experts' uses."""

from typing import NamedTuple

import numpy as np

from dwellmoe.cache.kernel.jit import helper
from dwellmoe.cache.learned import uses
from dwellmoe.cache.learned.nets import Nets, nets_of, run, shapes_of
from dwellmoe.cache.learned.order import ResidentOrder
from dwellmoe.cache.learned.uses import Uses
from dwellmoe.cache.learned.weights import check_shapes, depths, load_weights
from dwellmoe.cache.policies.base import Shape
from dwellmoe.errors import UserError

LAYOUT = "r of all experts, then f of all experts"


class MlFlashmoe(NamedTuple):
    """Evicts the farthest predicted next use.

    The nets serve models with as many experts a layer as they were trained for, or fewer.
    """

    resident_order: ResidentOrder
    uses: Uses
    nets: Nets
    predicted: np.ndarray  # float32 [layers, E of the nets]: as of the layer's last request
    stale: np.ndarray  # bool [layers]
    x: np.ndarray  # float32 [caches, inputs]
    hidden: np.ndarray  # float32 [caches, 2, H]

    lookahead = "none"
    LAYOUT = LAYOUT

    @classmethod
    def allocate(cls, shape: Shape, *, weights: str = ""):
        tensors, _ = load_weights(weights, "ml_flashmoe", LAYOUT)
        check_shapes(weights, tensors, shapes_of("", "I", "O"))
        nets = nets_of(tensors)
        trained, width = nets.out_bias.shape
        if nets.in_weight.shape[2] != 2 * width:
            raise UserError(
                f"{weights}: its nets have {width} outputs and need twice as many inputs, not "
                f"{nets.in_weight.shape[2]}"
            )
        each = shape.experts_per_layer
        if each > width:
            raise UserError(f"ml_flashmoe: its weights are for {width} experts a layer, the model has {each}")
        return cls(
            resident_order=ResidentOrder.allocate(*shape.per_expert),
            uses=Uses.allocate(*shape.per_expert),
            nets=nets.transposed(depths(shape.layers, trained)),
            predicted=np.zeros((shape.layers, width), np.float32),
            stale=np.ones(shape.layers, np.bool_),
            x=np.zeros((shape.caches, 2 * width), np.float32),
            hidden=np.zeros((shape.caches, 2, nets.in_bias.shape[1]), np.float32),
        )

    def reset(self, cache):
        uses.reset(self.uses, cache)

    def observe(self, cache, layer, ids, first, last, now):
        uses.count_request(self.uses, cache, ids, first, last, now.step)
        self.stale[layer] = True

    def score(self, cache, expert, now):
        caches, experts = self.uses.last.shape
        each = experts * caches // len(self.predicted)
        layer, own = uses.in_layer(cache, expert, each, experts)
        if self.stale[layer]:
            self.stale[layer] = False
            x, hidden = self.x[cache], self.hidden[cache]
            write_inputs(self.uses, cache, (layer - cache) * each, each, now.step, x)
            run(self.nets, layer, x, hidden[0], hidden[1], self.predicted[layer])
        return -self.predicted[layer, own]


@helper
def write_inputs(state, cache, begin, experts, step, x):
    """The features of `experts` experts from `begin` on, in the order of LAYOUT."""
    last, count = state.last[cache, begin : begin + experts], state.count[cache, begin : begin + experts]
    width, most = len(x) // 2, state.most[cache]
    for expert in range(len(last)):  # two plain loops over views become vector instructions
        x[expert] = uses.recency(last[expert], step)
    for expert in range(len(count)):
        x[width + expert] = uses.frequency(count[expert], most)


policy = MlFlashmoe
