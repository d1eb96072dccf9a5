"""Static residents: the experts that another trace used most stay, all others pass through."""

from typing import NamedTuple

import numpy as np

from dwellmoe.cache.kernel.heap import Heap
from dwellmoe.cache.learned.weights import check_shapes, depths, load_weights
from dwellmoe.cache.policies.base import Shape
from dwellmoe.errors import UserError

LAYOUT = "uses of each expert"


class Static(NamedTuple):
    """Evicts the expert with the fewest uses in the trace that `weights` was fitted to; ties by last use.

    The cache holds what it serves, so experts that pass through take the room of the least used members,
    which are loaded again at their next use. The first load of every expert counts as a miss, as it does for
    other policies, and is in `compulsory_misses`.
    """

    heap: Heap
    uses: np.ndarray  # float64 [caches, E]: in the trace that was counted

    lookahead = "none"
    monotone_score = True
    is_stack_algorithm = True
    LAYOUT = LAYOUT

    @classmethod
    def allocate(cls, shape: Shape, *, weights: str = ""):
        if not weights:
            raise UserError(
                "static: give weights=FILE, which `dwellmoe simulate fit --policy static` makes from a trace"
            )
        tensors, _ = load_weights(weights, "static", LAYOUT)
        check_shapes(weights, tensors, {"uses": ("L", shape.experts_per_layer)})
        uses = tensors["uses"].astype(np.float64)[depths(shape.layers, len(tensors["uses"]))]
        return cls(Heap.allocate(*shape.per_expert), uses.reshape(shape.per_expert))

    def record(self, cache, expert, inserted, now):
        pass

    def score(self, cache, expert, now):
        return self.uses[cache, expert]


policy = Static
