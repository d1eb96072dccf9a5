"""Training under re-routing: experts are chosen by what a deployed cache would hold.

Letters: B rows, T tokens a row.
"""

from collections.abc import Sequence

import numpy as np
from torch import Tensor, nn

from dwellmoe.cache.budget import ModelSizes, budget_of
from dwellmoe.data.collate import IGNORED_LABEL
from dwellmoe.errors import UserError
from dwellmoe.families import MoeLayer, expert_bytes
from dwellmoe.locality.rerouting_options import parse_cache
from dwellmoe.routing import SimulatedCache


class TrainingCache:
    """Each request of a batch goes through a small cache, whose experts the answer's tokens prefer.

    So the experts learn to stand in for one another, and the gates to prefer residents, while both still
    learn to predict. The choice has no gradient, the weights of the chosen experts do. The cache starts
    cold with each batch: a step then depends on its batch alone, and a run can be resumed.
    """

    def __init__(self, model: nn.Module, moe_layers: Sequence[MoeLayer], strategy: str, cache: str):
        policy, capacity = parse_cache(cache)
        bytes_L = tuple(expert_bytes(model, layer) for layer in moe_layers)
        sizes = ModelSizes(len(moe_layers), moe_layers[0].num_experts, bytes_L)
        slots = budget_of(sizes, "layer", capacity).capacity
        if slots < moe_layers[0].top_k:
            raise UserError(
                f"--train_rerouting_cache {cache} leaves {slots} slots a layer: a token needs "
                f"{moe_layers[0].top_k} of {moe_layers[0].num_experts} experts"
            )
        self.cache = SimulatedCache(model, moe_layers, strategy, policy=policy, capacity=slots)

    def of_batch(self, segments_BT: Tensor, labels_BT: Tensor) -> SimulatedCache:
        """The strategy for the tap in the next forward pass; what is predicted counts as decoded."""
        self.cache.reset()
        segments = segments_BT.cpu().numpy()
        request_BT = segments + np.arange(len(segments))[:, None] * (segments.max() + 1)
        self.cache.describe(request_BT, segments > 0, (labels_BT != IGNORED_LABEL).cpu().numpy())
        return self.cache
