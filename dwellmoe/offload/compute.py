"""Outputs of experts, computed one expert at a time in any order, with the same result.

Each expert's output is kept for every (token, chosen expert) pair it belongs to. The sum over a token's
experts is taken at the end, as transformers' own implementations take it: a result does not depend on which
expert was computed first. Letters: T tokens, K chosen experts a token, D hidden size.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from dwellmoe.experts.kernels import many_rows, one_row
from dwellmoe.experts.low_rank import add_low_rank_of_one
from dwellmoe.experts.peft_factors import carried
from dwellmoe.experts.rows import gather, sort_by_expert
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
    if _in_one_pass(module, x, weight, 1):
        out = one_row.products(one_row.BFLOAT16, x, _shape(weight), [weight])
        return out if bias is None else out.add_(bias)
    if not module.transposed:
        return many_rows.product(x, weight, bias)
    return x @ weight if bias is None else torch.addmm(bias, x, weight)


def _products(
    module: Any, x_MI: Tensor, weights: Sequence[Matrix], biases: Sequence[Tensor | None]
) -> Tensor:
    """One row, or a row of its own, times each of M matrices of one shape, [M, O]: a tensor of its own."""
    first: Any = weights[0]  # all others are held as the first is
    if isinstance(first, LowBitMatrix):
        held: Any = weights
        out_MO = first.format.products(x_MI, [each.stored for each in held], first.shape_OI)
    elif _in_one_pass(module, x_MI, first, len(weights)):
        out_MO = one_row.products(one_row.BFLOAT16, x_MI, _shape(first), weights)  # type: ignore[arg-type]
    else:
        pairs = zip(x_MI.expand(len(weights), -1).split(1), weights, strict=True)
        out_MO = torch.cat([_product(module, row, each, None) for row, each in pairs])
    return out_MO if biases[0] is None else out_MO.add_(torch.stack(list(biases)))  # type: ignore[arg-type]


def _in_one_pass(module: Any, x: Tensor, weight: Tensor, matrices: int) -> bool:
    """Whether plain matrices are multiplied by a compiled pass."""
    takes = weight.dtype == torch.bfloat16 and weight.is_contiguous() and not module.transposed
    return takes and one_row.is_one_row(x, matrices)


def has_pass(module: Any, x: Tensor, weight: Matrix) -> bool:
    """Whether rows are multiplied by a plain matrix by a compiled pass: faster an expert at a time than what
    libraries have for all experts at once.
    """
    return isinstance(weight, Tensor) and not module.transposed and many_rows.takes(x, weight)


def _shape(weight: Tensor) -> tuple[int, int]:
    return weight.shape[0], weight.shape[1]


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

    def add_all(self, weights: Sequence[Expert]) -> None:
        """All experts at once, in order."""
        if carried(self.module):
            for expert, of_expert in zip(self.index_of, weights, strict=True):
                self.add(expert, of_expert)
            return
        module, x_KD = self.module, self.hidden_1D
        if module.weighs_inputs:
            x_KD = (x_KD * self.weights_1K.view(-1, 1)).to(x_KD.dtype)
        up = _products(module, x_KD, [each.up for each in weights], [each.up_bias for each in weights])
        hidden = module._apply_gate(up) if module.has_gate else module.act_fn(up)
        downs, biases = [each.down for each in weights], [each.down_bias for each in weights]
        out_KD = _products(module, hidden, downs, biases)
        self.outputs = [module.post_expert_norm(out_KD) if module.has_post_expert_norm else out_KD]

    def result(self) -> Tensor:
        out_KD = torch.cat(self.outputs)  # type: ignore[arg-type] - every expert was added
        if self.module.weighs_inputs:
            return out_KD.sum(dim=0, keepdim=True).to(self.hidden_1D.dtype)
        weighted_KD = out_KD * self.weights_1K.view(-1, 1)
        return weighted_KD.sum(dim=0, keepdim=True).to(self.hidden_1D.dtype)


class ManyTokens:
    """The experts of several tokens: each expert is computed once, on all its tokens.

    experts_TK  ids of the chosen experts; those of `experts` and above add nothing
    """

    def __init__(self, module: Any, hidden_TD: Tensor, experts_TK: Tensor, weights_TK: Tensor, experts: int):
        self.module, self.dtype = module, hidden_TD.dtype
        self.rows = sort_by_expert(experts_TK, weights_TK, experts)
        self.weight_S1 = self.rows.weight_S[:, None]
        self.x_SD = hidden_TD[self.rows.token_S]
        if module.weighs_inputs:
            self.x_SD = (self.x_SD * self.weight_S1).to(hidden_TD.dtype)
            self.weight_S1 = torch.ones_like(self.weight_S1)
        dtype = torch.promote_types(hidden_TD.dtype, weights_TK.dtype)
        self.out_SD = torch.empty_like(self.x_SD, dtype=dtype)
        self.row_of_none_N = self.rows.row_TK[experts_TK >= experts]

    def add(self, expert: int, weights: Expert) -> None:
        begin, end = self.rows.ends[expert - 1] if expert else 0, self.rows.ends[expert]
        out = run_expert(self.module, self.x_SD[begin:end], expert, weights)
        torch.mul(out, self.weight_S1[begin:end], out=self.out_SD[begin:end])

    def result(self) -> Tensor:
        self.out_SD[self.row_of_none_N] = 0
        return gather(self.out_SD, self.rows).to(self.dtype)
