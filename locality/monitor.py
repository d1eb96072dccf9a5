"""Turns what routers chose in training batches into the numbers people watch; every number comes from
expert_cache.

Letters: L layers, B rows, T tokens a row, S valid tokens, E experts, K chosen experts a token.
"""

from collections.abc import Sequence

import numpy as np
from torch import Tensor

from expert_cache import metrics
from expert_cache.replay import replay
from expert_cache.trace import DECODE, RoutingTrace
from models import MoeLayer

CACHE_SHARE = 0.25
"""Capacity of the simulated cache, as a share of a layer's experts."""


class RoutingMonitor:
    """Keeps the choices of some batches and says how local they are.

    Every valid token counts as decoded: text scored in one causal pass routes as if it had been decoded.
    """

    def __init__(self, layers: Sequence[MoeLayer]):
        self._layers = layers
        self._experts: list[np.ndarray] = []
        self._requests: list[np.ndarray] = []

    def add(self, chosen_LBTK: Tensor, segment_ids_BT: Tensor) -> None:
        """Takes one batch; tokens of segment 0 are padding and are dropped."""
        valid_BT = segment_ids_BT > 0
        self._experts.append(chosen_LBTK.permute(1, 2, 0, 3)[valid_BT].cpu().numpy().astype(np.uint16))
        first = self._requests[-1][-1] + 1 if self._requests else 0
        rows_BT = segment_ids_BT + valid_BT.new_tensor(range(len(valid_BT)), dtype=int)[:, None] * (
            int(segment_ids_BT.max()) + 1
        )
        _, ids = np.unique(rows_BT[valid_BT].cpu().numpy(), return_inverse=True)
        self._requests.append(first + ids.astype(np.int32))

    def trace(self) -> RoutingTrace:
        """What was added since the last clear, as one trace."""
        experts = np.concatenate(self._experts)
        return RoutingTrace(
            experts=experts,
            phase=np.full(len(experts), DECODE, np.uint8),
            request=np.concatenate(self._requests),
            num_experts=self._layers[0].num_experts,
            layer_ids=tuple(layer.layer_id for layer in self._layers),
        )

    def clear(self) -> None:
        """Forgets everything added."""
        self._experts.clear()
        self._requests.clear()

    def __bool__(self) -> bool:
        return bool(self._experts)


def ecr_per_layer(trace: RoutingTrace) -> np.ndarray:
    """ECR of each layer, float64 [L]; NaN where no request has two tokens."""
    return np.array(metrics.ecr(trace, "decode").per_layer)


def lru_hit_rate(trace: RoutingTrace) -> float:
    """Hit rate of a cold LRU cache of CACHE_SHARE of each layer's experts (atomic), or of K slots where
    that is more.
    """
    capacity = max(int(trace.num_experts * CACHE_SHARE), trace.top_k)
    return replay(trace, "lru", capacity, phase="decode")["hit_rate"]
