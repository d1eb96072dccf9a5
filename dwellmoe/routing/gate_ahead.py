"""Predicts a layer's experts one layer early: its own gate is run on what the router before it reads.

Letters: S token steps, T tokens, L MoE layers, E experts, K chosen, D hidden size.
"""

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from dwellmoe.cache.trace import DECODE, RoutingTrace
from dwellmoe.errors import UserError
from dwellmoe.families import MoeLayer
from dwellmoe.routing.next_router import NextRouter


class GateAhead:
    """A `with` block in which each router's inputs are also given to the gate of the next MoE layer."""

    def __init__(self, model: nn.Module, moe_layers: Sequence[MoeLayer]):
        self._routers = [model.get_submodule(layer.router) for layer in moe_layers]
        self._next = [NextRouter(model, *pair) for pair in pairwise(moe_layers)]
        self._margins: dict[int, Tensor] = {}
        self._handles: list[RemovableHandle] = []

    def __enter__(self) -> "GateAhead":
        for router, ask in zip(self._routers, self._next, strict=False):
            self._handles.append(router.register_forward_pre_hook(self._hook(ask), with_kwargs=True))
        return self

    def __exit__(self, *exception) -> None:
        while self._handles:
            self._handles.pop().remove()

    def _hook(self, ask: NextRouter) -> Callable:
        def before_router(_router: nn.Module, inputs: tuple, named: dict[str, Any]) -> None:
            if (answer := ask(inputs, named)) is not None:
                self._margins[ask.layer.index] = margin(answer[0].flatten(0, -2), ask.layer.top_k)

        return before_router

    def margin_of(self, index: int) -> Tensor | None:
        """`margin` of MoE layer `index` in the current or else the last forward pass, [T, E]; None for the
        first layer, and for one whose router cannot be asked a layer early.
        """
        return self._margins.get(index)

    def margins(self) -> Tensor:
        """`margin` of all layers in the last forward pass, [T, L, E]; NaN in the first layer. Raises
        UserError for a router that cannot be asked.
        """
        if fault := next((ask.fault for ask in self._next if ask.fault), None):
            raise UserError(fault)
        found = [self._margins[ask.layer.index] for ask in self._next]
        return torch.stack([torch.full_like(found[0], torch.nan), *found], dim=1)


def margin(logits_TE: Tensor, top_k: int) -> Tensor:
    """float32 [T, E]: each logit less the middle between the K-th largest and the next; above 0 for the K."""
    logits_TE = logits_TE.float()
    border_T2 = logits_TE.topk(min(top_k + 1, logits_TE.shape[-1]), dim=-1).values[:, -2:]
    return logits_TE - border_T2.mean(dim=-1, keepdim=True)


def margins_ahead(model: Any, moe_layers: Sequence[MoeLayer], trace: RoutingTrace) -> np.ndarray:
    """`GateAhead.margins` of a trace's decoded tokens, request after request, float32 [S, L, E].

    The model runs once more over the trace's `token_ids`; UserError for a trace without them, and for a model
    with one MoE layer.
    """
    if len(moe_layers) < 2:
        raise UserError("gate_ahead predicts a MoE layer from the one before it, and this model has only one")
    if trace.token_ids is None:
        raise UserError("gate_ahead needs a trace with token_ids")
    found = []
    with torch.inference_mode(), GateAhead(model, moe_layers) as ahead:
        for request in dict.fromkeys(trace.request[trace.phase == DECODE].tolist()):
            rows = np.flatnonzero(trace.request == request)
            ids_1T = torch.from_numpy(trace.token_ids[rows].astype(np.int64))[None]
            model(input_ids=ids_1T.to(model.device), use_cache=False)
            found.append(ahead.margins()[torch.from_numpy(trace.phase[rows] == DECODE)].cpu().numpy())
    return np.concatenate(found)
