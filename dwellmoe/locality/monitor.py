"""Measurements while a model trains: ECR, hit rate and experts in use of some batches, and means of losses.

Letters: L layers, B rows, T tokens a row, E experts.
"""

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from accelerate import PartialState
from accelerate.utils import reduce
from torch import Tensor

from dwellmoe.cache.trace import RoutingTrace
from dwellmoe.errors import UserError
from dwellmoe.families import MoeLayer
from dwellmoe.log import warn_once
from dwellmoe.routing.trace_recorder import TraceRecorder

LEAST_SETS = 2
"""A layer in which fewer experts are used than so many tokens choose has no routing left."""


class RoutingMonitor:
    """Collects the routing of batches, through `recorder`, as a trace.

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


def experts_used(trace: RoutingTrace) -> np.ndarray:
    """bool [L, E]: whether any token of the trace chose the expert."""
    used = np.zeros((trace.layers, trace.num_experts), bool)
    for layer in range(trace.layers):
        chosen = trace.experts[:, layer]
        used[layer, chosen[chosen < trace.num_experts]] = True
    return used


def collapsed_layers(layers: Sequence[MoeLayer], used_L: Sequence[int], tokens: int) -> list[MoeLayer]:
    """Those of `layers` that used fewer than 2K experts over a validation set.

    `used_L`: distinct experts of every MoE layer of the model, by its index. With fewer tokens than
    experts nothing is concluded.
    """
    return [layer for layer in layers if used_L[layer.index] < _least(layer) and tokens >= layer.num_experts]


def _least(layer: MoeLayer) -> int:
    return min(LEAST_SETS * layer.top_k, layer.num_experts)


def refuse_collapse(layer: MoeLayer, used: int, used_before: int | None) -> None:
    """Ends a run whose training made a router collapse; one that had collapsed before is only told of.

    `used`, `used_before`: distinct experts over the validation set, now and before training (None: not
    known). Raises UserError.
    """
    counts = f"{used} of {layer.num_experts} experts are used over the validation set"
    if used_before is not None and used_before < _least(layer):
        warn_once(
            f"the router of layer {layer.layer_id} had collapsed before training: {used_before} of "
            f"{layer.num_experts} experts were used over the validation set, by the model as it was loaded"
        )
        return
    before = "not counted (--eval_on_start True counts them)" if used_before is None else str(used_before)
    raise UserError(
        f"the router of layer {layer.layer_id} has collapsed: {counts}, before training {before}; at least "
        f"{_least(layer)} (2 x {layer.top_k}) must be. Checkpoints are kept. Lower the locality weight, or "
        "raise --aux_loss_alpha or --gate_kl_weight"
    )


class RunningMeans:
    """Weighted means of scalars since the last reading; keeps tensors, so that no step waits for a device."""

    def __init__(self):
        self._sums: dict[str, Any] = defaultdict(float)
        self._weights: dict[str, Any] = defaultdict(float)

    def add(self, weight: Any = 1.0, **values: Any) -> None:
        for name, value in values.items():
            value = value.detach() if torch.is_tensor(value) else value
            self._sums[name] = self._sums[name] + value * weight
            self._weights[name] = self._weights[name] + weight

    def read(self) -> dict[str, float]:
        """The means over all ranks, without those of nothing; starts anew. Every rank must call it."""
        names = sorted(self._sums)
        totals = torch.tensor(
            [[float(self._sums[name]), float(self._weights[name])] for name in names], dtype=torch.float64
        )
        self._sums.clear()
        self._weights.clear()
        if not names:
            return {}
        sums = sum_over_ranks(totals.float())
        means = zip(names, sums, strict=True)
        return {name: (total / weight).item() for name, (total, weight) in means if weight}


def sum_over_ranks(values: Tensor) -> Tensor:
    """The sum over all ranks, each of which must call it."""
    total: Any = reduce(values.to(PartialState().device), "sum")
    return total
