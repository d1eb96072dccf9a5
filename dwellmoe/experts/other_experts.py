"""Experts that transformers does not run through its experts interface, made to run through an implementation
of it: those of Llama 4, whose routing weights come before the experts, of LongCat-Flash, where some experts
compute nothing, and of Step 3.7, which only lack its description.

Letters: T tokens of all rows, K chosen experts a token, D hidden size, E routed experts with weights.
"""

from collections.abc import Callable
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn
from transformers.integrations.moe import _default_apply_gate

from dwellmoe.families import MoeLayer
from dwellmoe.families.base import unwrap

LLAMA4, LONGCAT, STEP = "Llama4TextExperts", "LongcatFlashExperts", "Step3p7Experts"
Implementation = Callable[[Any, Tensor, Tensor, Tensor], Tensor]
"""(experts module, hidden_TD, indices_TK, weights_TK) -> the output of a layer's experts, [T, D]."""


def describe_experts(experts: Any) -> None:
    """Gives an experts module the attributes by which transformers' interface describes one, and two more:
    `weighs_inputs`, and `transposed` for `is_transposed`, by which PEFT would shape LoRA in another way than
    on the model in memory.
    """
    name = type(experts).__name__
    experts.weighs_inputs = experts.transposed = name == LLAMA4
    if name in (LLAMA4, LONGCAT, STEP):
        _describe(experts)
    elif hasattr(experts, "has_gate"):
        experts.transposed = experts.is_transposed


def _describe(experts: Any) -> None:
    experts.has_gate = experts.is_concatenated = True
    experts.has_bias = experts.has_post_expert_norm = experts._is_expert_parallel = False
    experts.num_experts = len(experts.down_proj)
    if not hasattr(experts, "_apply_gate"):
        experts._apply_gate = MethodType(_default_apply_gate, experts)


def run_through_interface(model: nn.Module, layer: MoeLayer, implementation: Implementation) -> None:
    """From now on a layer's experts, if they are such ones, are computed by an implementation."""
    block, experts = model.get_submodule(layer.block), unwrap(model.get_submodule(layer.experts))
    if type(experts).__name__ == LLAMA4:
        block.forward = MethodType(_llama4_block, block)
        experts.forward = MethodType(implementation, experts)
    if type(experts).__name__ == STEP:
        experts.forward = MethodType(implementation, experts)
    if type(experts).__name__ == LONGCAT:
        experts.forward = MethodType(_with_idle_experts(implementation), experts)


def _llama4_block(block: Any, hidden_states: Tensor) -> tuple[Tensor, Tensor]:
    """The block's output and its router's logits. Its own forward runs every expert on every token."""
    hidden_TD = hidden_states.reshape(-1, block.hidden_dim)
    scores_TE, logits_TE = block.router(hidden_TD)
    weights_TK, indices_TK = scores_TE.topk(block.top_k, dim=-1)
    routed_TD = block.experts(hidden_TD, indices_TK, weights_TK)
    return block.shared_expert(hidden_TD) + routed_TD, logits_TE


def _with_idle_experts(implementation: Implementation) -> Implementation:
    """The same, where an id of E and above is an expert that returns its input."""

    def forward(experts: Any, hidden_TD: Tensor, indices_TK: Tensor, weights_TK: Tensor) -> Tensor:
        routed = experts.num_experts
        out_TD = implementation(experts, hidden_TD, indices_TK.clamp(max=routed), weights_TK)
        unchanged_T1 = weights_TK.masked_fill(indices_TK < routed, 0).sum(dim=-1, keepdim=True)
        return torch.addcmul(out_TD, hidden_TD, unchanged_T1.to(out_TD.dtype))

    return forward
