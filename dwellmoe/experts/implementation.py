"""The experts implementation registered with transformers: experts with LoRA per expert, or with weights that
another object holds; any other experts go on as they did.

Letters: T tokens, K chosen experts a token, S rows sorted by expert, E experts, D hidden size, I and O the
input and output width of a product.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS

from dwellmoe.experts.low_rank import Source, add_low_rank
from dwellmoe.experts.other_experts import describe_experts, run_through_interface
from dwellmoe.experts.peft_factors import bypass, carried
from dwellmoe.experts.rows import Rows, gather, multiple_of, sort_by_expert, spread
from dwellmoe.experts.weights import ATTRIBUTE, product
from dwellmoe.families import find_moe_layers
from dwellmoe.families.base import unwrap
from dwellmoe.log import warn_once

NAME = "per_expert"
PLAIN = "plain_implementation"
"""Attribute of an experts module: the name of transformers' implementation that computes it without LoRA."""


def use_expert_lora(model: nn.Module) -> None:
    """From now on LoRA of the routed experts of `model` is computed on the rows that each expert serves.

    The model may be wrapped by PEFT already. An experts module that cannot be computed so keeps PEFT's own
    way, which is said.
    """
    for layer in find_moe_layers(model):
        experts: Any = unwrap(model.get_submodule(layer.experts))
        describe_experts(experts)
        if not hasattr(experts, "has_gate"):
            warn_once(f"LoRA of {type(experts).__name__} is computed by PEFT, for all experts at once")
            continue
        if hasattr(experts, "is_transposed"):  # it is run through transformers' interface
            experts.__dict__.setdefault(PLAIN, experts.config._experts_implementation)
        run_through_interface(model, layer, per_expert_forward)
        bypass(model.get_submodule(layer.experts))
        _hide_activation(experts)
    _transformer(model).set_experts_implementation(NAME)


def _hide_activation(experts: Any) -> None:
    """Has the activation be no sub-module any more: how often the backward pass calls it depends on a rank's
    tokens, and ZeRO-3 waits forever where ranks call their sub-modules in different orders.
    """
    found = experts._modules.get("act_fn")
    if found is not None and not [*found.parameters()]:
        del experts._modules["act_fn"]
        experts.__dict__["act_fn"] = found


def _transformer(model: Any) -> Any:
    """The model of transformers within PEFT's wrapper."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def per_expert_forward(module: Any, hidden_TD: Tensor, indices_TK: Tensor, weights_TK: Tensor) -> Tensor:
    """The output of a layer's experts, [T, D]."""
    adapted = carried(module) or getattr(module, ATTRIBUTE, None) is not None
    if not adapted and hasattr(module, PLAIN):
        own = type(module).forward.__wrapped__  # type: ignore[attr-defined] - transformers' decorator sets it
        forward = ALL_EXPERTS_FUNCTIONS.get_interface(getattr(module, PLAIN), own)
        return forward(module, hidden_TD, indices_TK, weights_TK)
    with torch.autocast(hidden_TD.device.type, enabled=False):
        return _forward(module, hidden_TD, indices_TK, weights_TK)


def _forward(module: Any, hidden_TD: Tensor, indices_TK: Tensor, weights_TK: Tensor) -> Tensor:
    multiple = multiple_of(hidden_TD, indices_TK.numel(), module.num_experts)
    rows = sort_by_expert(indices_TK, weights_TK, module.num_experts, multiple)
    inputs, hidden = partial(_input_rows, module, rows), partial(_hidden_rows, module, rows)
    x_SD = spread(hidden_TD, rows)
    if _weighs_inputs(module):
        x_SD = _weighted(x_SD, rows.weight_S)
    up_SO = _project(module, "gate_up_proj" if module.has_gate else "up_proj", x_SD, rows, inputs, hidden_TD)
    if module.has_bias:
        up_SO += getattr(module, "gate_up_proj_bias" if module.has_gate else "up_proj_bias")[rows.expert_S()]
    del x_SD
    h_SI = _recomputed(partial(hidden, part=slice(None)), up_SO)
    out_SD = _project(module, "down_proj", h_SI, rows, hidden, up_SO)
    if module.has_post_expert_norm:
        out_SD = _normed(module, out_SD, rows)
    out_TD = gather(out_SD, rows)
    if module.has_bias and _weighs_hidden(module):
        out_TD = out_TD + _weighted_bias(module, indices_TK, weights_TK)
    return out_TD.to(hidden_TD.dtype)


def _input_rows(module: Any, rows: Rows, hidden_TD: Tensor, part: slice) -> Tensor:
    """Some rows of the input of the first product."""
    x_SD = hidden_TD[rows.token_S[part]]
    return _weighted(x_SD, rows.weight_S[part]) if _weighs_inputs(module) else x_SD


def _hidden_rows(module: Any, rows: Rows, up_SO: Tensor, part: slice) -> Tensor:
    """Some rows of the input of `down_proj`."""
    h_SI = module._apply_gate(up_SO[part]) if module.has_gate else module.act_fn(up_SO[part])
    return _weighted(h_SI, rows.weight_S[part]) if _weighs_hidden(module) else h_SI


def _project(
    module: Any,
    name: str,
    x_SI: Tensor,
    rows: Rows,
    rows_of: Callable[[Tensor, slice], Tensor],
    kept: Tensor,
) -> Tensor:
    """The product of rows and weights, with LoRA, without bias; `x_SI` is `rows_of(kept, all rows)`."""
    out_SO = product(module, name, x_SI, rows.ends)
    for factors in carried(module).get(name, ()):
        out_SO = add_low_rank(out_SO, x_SI, factors, rows.ends, Source(kept, rows_of))
    return out_SO


def _normed(module: Any, out_SD: Tensor, rows: Rows) -> Tensor:
    """Rows with their bias, through the norm and times the routing weights."""
    if module.has_bias:
        out_SD += module.down_proj_bias[rows.expert_S()]
    return _weighted(module.post_expert_norm(out_SD), rows.weight_S)


def _weighted_bias(module: Any, indices_TK: Tensor, weights_TK: Tensor) -> Tensor:
    """The sum of a token's biases of `down_proj` times their routing weights, [T, D]."""
    experts = module.num_experts
    weights_TE = weights_TK.new_zeros(len(weights_TK), experts + 1)
    weights_TE = weights_TE.scatter_add(1, indices_TK.clamp(max=experts), weights_TK)[:, :experts]
    return weights_TE @ module.down_proj_bias.to(weights_TE.dtype)


def _weighs_inputs(module: Any) -> bool:
    """Whether the routing weights come before the experts."""
    return getattr(module, "weighs_inputs", False)


def _weighs_hidden(module: Any) -> bool:
    """Whether the routing weights may come before `down_proj`: so its product need not be kept for their
    gradient.
    """
    return not (_weighs_inputs(module) or module.has_post_expert_norm)


def _weighted(x_SD: Tensor, weight_S: Tensor) -> Tensor:
    return (x_SD * weight_S[:, None]).to(x_SD.dtype)


def _recomputed(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """`function(x)`, of which the backward pass needs nothing but x."""
    if not torch.is_grad_enabled():
        return function(x)
    return checkpoint(function, x, use_reentrant=False, preserve_rng_state=False)  # type: ignore[return-value]


ALL_EXPERTS_FUNCTIONS.register(NAME, per_expert_forward)
