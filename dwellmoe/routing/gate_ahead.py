"""Knows what each layer's own gate makes of the hidden states that the layer before it routed; trains nothing
and judges nothing.

Letters: S token steps, T tokens, L MoE layers, E experts, K chosen, D hidden size.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from dwellmoe.cache.trace import DECODE, RoutingTrace
from dwellmoe.errors import UserError
from dwellmoe.families import MoeLayer, family_of


class GateAhead:
    """A `with` block that shows each router's successor what the router itself is about to see.

    `margins()` of the forward pass since the last call, float32 [T, L, E]: by how much an expert's logit
    passes the border of the K largest, in the middle between the K-th and the next; NaN in the first layer,
    which no gate foresees. The gates are called past their hooks, so nobody else hears of it. A router must
    take hidden states alone; a UserError says so.
    """

    def __init__(self, model: nn.Module, moe_layers: Sequence[MoeLayer]):
        self._routers: list[Any] = [model.get_submodule(layer.router) for layer in moe_layers]
        self._layers, self._family = list(moe_layers), family_of(model)
        self._warned: dict[int, Tensor] = {}
        self._handles: list[RemovableHandle] = []

    def __enter__(self) -> "GateAhead":
        for place, router in enumerate(self._routers[:-1]):
            self._handles.append(router.register_forward_pre_hook(self._hook(place + 1)))
        return self

    def __exit__(self, *exception) -> None:
        while self._handles:
            self._handles.pop().remove()

    def _hook(self, following: int) -> Callable:
        def before_router(_router: nn.Module, inputs: tuple) -> None:
            layer = self._layers[following]
            try:
                with torch.no_grad():
                    output = self._routers[following].forward(*inputs)
            except TypeError:
                raise UserError(f"router '{layer.router}' takes more than hidden states") from None
            logits_TE = self._family.read(output, layer.top_k)[0].flatten(0, -2)
            self._warned[following] = margin(logits_TE, layer.top_k)

        return before_router

    def margin_of(self, place: int) -> Tensor:
        """float32 [T, E] of one layer but the first, in the forward pass under way or the last."""
        return self._warned[place]

    def margins(self) -> Tensor:
        first_TE = torch.full_like(self._warned[1], torch.nan)
        return torch.stack([first_TE, *map(self.margin_of, range(1, len(self._layers)))], dim=1)


def margin(logits_TE: Tensor, top_k: int) -> Tensor:
    """float32 [T, E]: above 0 for the K largest logits of a token."""
    logits_TE = logits_TE.float()
    border_T2 = logits_TE.topk(min(top_k + 1, logits_TE.shape[-1]), dim=-1).values[:, -2:]
    return logits_TE - border_T2.mean(dim=-1, keepdim=True)


def margins_ahead(model: Any, moe_layers: Sequence[MoeLayer], trace: RoutingTrace) -> np.ndarray:
    """float32 [S, L, E] of the decoded tokens of a trace with `token_ids`, request after request, as the
    model that wrote the trace sees them now. UserError without ids.
    """
    if trace.token_ids is None:
        raise UserError("gate_ahead needs a trace with token_ids")
    found = []
    with torch.inference_mode(), GateAhead(model, moe_layers) as ahead:
        for name in dict.fromkeys(trace.request[trace.phase == DECODE].tolist()):
            rows = np.flatnonzero(trace.request == name)
            ids_1T = torch.from_numpy(trace.token_ids[rows].astype(np.int64))[None]
            model(input_ids=ids_1T.to(model.device), use_cache=False)
            found.append(ahead.margins()[torch.from_numpy(trace.phase[rows] == DECODE)].cpu().numpy())
    return np.concatenate(found)
