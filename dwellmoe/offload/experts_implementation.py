"""The experts implementation that DwellMoE registers with transformers: the one seam between the two.

transformers calls `cached_experts_forward` instead of its own implementation, with the router's choice.
Letters: T tokens of all rows, K chosen experts a token, D hidden size.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS

from dwellmoe.families import MoeLayer
from dwellmoe.families.base import HELD_BYTES, unwrap
from dwellmoe.offload.cached_experts import CachedExperts

NAME = "expert_cache"
HANDLE = "expert_cache_layer"
"""Attribute of an experts module: (CachedExperts, index of the MoE layer)."""


def cached_experts_forward(module: Any, hidden_TD: Tensor, indices_TK: Tensor, weights_TK: Tensor) -> Tensor:
    """The output of a layer's experts, [T, D]; inference only."""
    cached_experts, layer = getattr(module, HANDLE)
    with torch.no_grad():
        return cached_experts.run_layer(layer, module, hidden_TD, indices_TK, weights_TK)


ALL_EXPERTS_FUNCTIONS.register(NAME, cached_experts_forward)


def run_experts_from(cached_experts: CachedExperts, model: Any, layers: Sequence[MoeLayer]) -> None:
    """From now on the experts of `layers` are computed by `cached_experts`."""
    for layer in layers:
        experts, layout = model.get_submodule(layer.experts), cached_experts.slot_table.layout(layer.index)
        setattr(experts, HANDLE, (cached_experts, layer.index))
        if layout.formats:
            setattr(experts, HELD_BYTES, layout.nbytes)
    show_slots(cached_experts, model, layers)
    model.set_experts_implementation(NAME)


def show_slots(cached_experts: CachedExperts, model: Any, layers: Sequence[MoeLayer]) -> None:
    """Where all experts fit on the device, the modules' parameters become views of its slots, but of layers
    in low bits.
    """
    table = cached_experts.slot_table
    for layer in layers:
        if not table.is_stacked(layer.index):
            continue
        experts = unwrap(model.get_submodule(layer.experts))
        first = layer.index * layer.num_experts
        for name, weight in table.device.stacked(first, layer.num_experts, layer.index).items():
            setattr(experts, name, nn.Parameter(weight, requires_grad=False))
