"""Outputs of experts, computed one expert at a time in any order, with the same result.

Each expert's output is kept for every (token, chosen expert) pair it belongs to. The sum over a token's
experts is taken at the end, as transformers' own implementations take it: a result does not depend on which
expert was computed first. Letters: T tokens, K chosen experts a token, D hidden size.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import linear

from dwellmoe.experts.low_rank import add_low_rank_of_one
from dwellmoe.experts.peft_factors import carried
from dwellmoe.offload.expert_layout import Expert, LowBitMatrix, Matrix


def run_expert(module: Any, x_TD: Tensor, expert: int, weights: Expert) -> Tensor:
    """The output of one expert for some tokens, with the flags and activation of its own module, and with the
    LoRA that the module carries.
    """
    lora = carried(module)
    up = _product(module, x_TD, weights.up, weights.up_bias)
    for factors in lora.get("gate_up_proj" if module.has_gate else "up_proj", ()):
        add_low_rank_of_one(up, x_TD, factors, expert)
    hidden = module._apply_gate(up) if module.has_gate else module.act_fn(up)
    out_TD = _product(module, hidden, weights.down, weights.down_bias)
    for factors in lora.get("down_proj", ()):
        add_low_rank_of_one(out_TD, hidden, factors, expert)
    return module.post_expert_norm(out_TD) if module.has_post_expert_norm else out_TD


def _product(module: Any, x: Tensor, weight: Matrix, bias: Tensor | None) -> Tensor:
    """A tensor of its own."""
    if isinstance(weight, LowBitMatrix):
        out = weight.product(x)
        return out if bias is None else out.add_(bias)
    x = x.to(weight.dtype)
    if not module.transposed:
        return linear(x, weight, bias)
    return x @ weight if bias is None else torch.addmm(bias, x, weight)


class OneToken:
    """The experts of one token."""

    def __init__(self, module: Any, hidden_1D: Tensor, experts: list[int], weights_1K: Tensor) -> None:
        self.module, self.hidden_1D, self.weights_1K = module, hidden_1D, weights_1K
        self.index_of = {expert: k for k, expert in enumerate(experts)}
        self.outputs: list[Tensor | None] = [None] * len(experts)

    def add(self, expert: int, weights: Expert) -> None:
        k, x_1D = self.index_of[expert], self.hidden_1D
        if self.module.weighs_inputs:
            x_1D = (x_1D * self.weights_1K[:, k, None]).to(x_1D.dtype)
        self.outputs[k] = run_expert(self.module, x_1D, expert, weights)

    def result(self) -> Tensor:
        out_KD = torch.cat(self.outputs)  # type: ignore[arg-type] - every expert was added
        if self.module.weighs_inputs:
            return out_KD.sum(dim=0, keepdim=True).to(self.hidden_1D.dtype)
        weighted_KD = out_KD * self.weights_1K.view(-1, 1)
        return weighted_KD.sum(dim=0, keepdim=True).to(self.hidden_1D.dtype)


class ManyTokens:
    """The experts of several tokens: each expert is computed once, on all its tokens."""

    def __init__(self, module: Any, hidden_TD: Tensor, experts_TK: Tensor, weights_TK: Tensor, experts: int):
        self.module, self.hidden_TD, self.shape = module, hidden_TD, weights_TK.shape
        flat = experts_TK.reshape(-1).clamp(max=experts)
        self.order = flat.argsort(stable=True)
        self.x = hidden_TD[self.order // self.shape[1]]
        self.weights = weights_TK.reshape(-1, 1)[self.order]
        if module.weighs_inputs:
            self.x = (self.x * self.weights).to(hidden_TD.dtype)
            self.weights = torch.ones_like(self.weights)
        ends = torch.bincount(flat, minlength=experts + 1).cumsum(0).tolist()
        self.begin, self.end = [0, *ends[:-1]], ends
        dtype = torch.promote_types(hidden_TD.dtype, weights_TK.dtype)
        self.out = hidden_TD.new_empty(len(flat), hidden_TD.shape[1], dtype=dtype)
        self.out[self.begin[experts] :] = 0  # pairs whose id is no routed expert

    def add(self, expert: int, weights: Expert) -> None:
        rows = slice(self.begin[expert], self.end[expert])
        out = run_expert(self.module, self.x[rows], expert, weights)
        torch.mul(out, self.weights[rows], out=self.out[rows])

    def result(self) -> Tensor:
        row_of = torch.empty_like(self.order)
        row_of[self.order] = torch.arange(len(row_of), device=row_of.device)
        return self.out[row_of].view(*self.shape, -1).sum(dim=1).to(self.hidden_TD.dtype)
