"""Turns what routers chose in some batches into the numbers people watch; expert_cache computes them.

Letters: L layers, B rows, T tokens a row.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from dwellmoe.cache import metrics
from dwellmoe.cache.budget import budget_of
from dwellmoe.cache.replay.replay import replay
from dwellmoe.cache.trace import RoutingTrace
from dwellmoe.families import MoeLayer
from dwellmoe.routing.trace_recorder import TraceRecorder

CACHE_SHARE = 0.25
"""Capacity of the simulated cache, as a share of a layer's experts."""


class RoutingMonitor:
    """Records batches through `recorder`, an observer of routers, and says how local their routing is.

    Every valid token counts as decoded: text scored in one causal pass routes as if it had been decoded.
    """

    def __init__(self, layers: Sequence[MoeLayer]):
        self.recorder = TraceRecorder(layers)
        self._next_request = 0

    def add(self, segment_ids_BT: Tensor) -> None:
        """Describes the batch that just ran; each segment is a request, segment 0 padding."""
        requests_a_row = int(segment_ids_BT.max()) + 1
        first_B = torch.arange(len(segment_ids_BT)) * requests_a_row + self._next_request
        valid_BT = segment_ids_BT > 0
        self.recorder.add(segment_ids_BT.cpu() + first_B[:, None], valid_BT, valid_BT)
        self._next_request += len(segment_ids_BT) * requests_a_row

    def trace(self) -> RoutingTrace | None:
        """What was added since the last trace, None for nothing; the monitor then starts anew."""
        if self._next_request == 0:
            return None
        self._next_request = 0
        return self.recorder.trace()


def ecr_per_layer(trace: RoutingTrace) -> np.ndarray:
    """ECR of each layer, float64 [L]; NaN where no request has two tokens."""
    return np.array(metrics.ecr(trace, "decode").per_layer)


def lru_hit_rate(trace: RoutingTrace) -> float:
    """Hit rate of a cold LRU cache of CACHE_SHARE of each layer's experts (atomic), or of K slots if more."""
    return hit_rate(trace, "lru", f"{CACHE_SHARE:.0%}")


def hit_rate(trace: RoutingTrace, policy: str, capacity: str) -> float:
    """Hit rate of a cold cache a layer (atomic); `capacity` as in `replay`, but at least K slots."""
    slots = max(budget_of(trace, "layer", capacity).capacity, trace.top_k)
    return replay(trace, policy, slots, phase="decode", resamples=0).hit_rate


def experts_used(trace: RoutingTrace) -> np.ndarray:
    """bool [L, E]: whether any token of the trace chose the expert."""
    used = np.zeros((trace.layers, trace.num_experts), bool)
    for layer in range(trace.layers):
        chosen = trace.experts[:, layer]
        used[layer, chosen[chosen < trace.num_experts]] = True
    return used
