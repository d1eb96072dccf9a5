"""One MoE block is brought back to its dense block's output.

First the down projections in closed form, all at once, since the output is linear in them; then every weight
of the block by gradient. Both weigh a token by its own output, so that the few tokens with outputs a thousand
times as long as the others' count like any other.

Letters: T tokens, D hidden size, N neurons, E routed experts, M neurons of one of them.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS

from dwellmoe.locality.balance import balance_loss
from moe_router_fit import expert_neurons

ALL_NEURONS = "all_neurons"
"""An experts implementation for healing: such small experts are faster computed together and masked."""
REFIT_RIDGE = 0.1
BALANCE_WEIGHT = 0.01
BATCH_TOKENS = 512


def all_neurons_experts(experts: Any, x_TD: Tensor, indices_TK: Tensor, weights_TK: Tensor) -> Tensor:
    """[T, D]: what transformers' own implementations give, by weighing all neurons, most of them by zero."""
    weighted_TN = _weighted_neurons(experts, x_TD, indices_TK, weights_TK)
    return weighted_TN @ experts.down_proj.transpose(1, 2).flatten(0, 1)


def _weighted_neurons(experts: Any, x_TD: Tensor, indices_TK: Tensor, weights_TK: Tensor) -> Tensor:
    neurons_TEM = expert_neurons(experts, x_TD)
    weights_TE = neurons_TEM.new_zeros(neurons_TEM.shape[:2])
    weights_TE = weights_TE.scatter(1, indices_TK, weights_TK.to(neurons_TEM.dtype))
    return (neurons_TEM * weights_TE.unsqueeze(-1)).flatten(1)


ALL_EXPERTS_FUNCTIONS.register(ALL_NEURONS, all_neurons_experts)


def relative_errors(output_TD: Tensor, target_TD: Tensor) -> Tensor:
    """[T]: squared distance over the squared length of the target."""
    return (output_TD - target_TD).square().sum(-1) / target_TD.square().sum(-1).clamp(min=1e-12)


@torch.no_grad()
def mean_error(block: Any, x_TD: Tensor, target_TD: Tensor) -> float:
    """Mean relative error of a block over tokens."""
    output_TD = torch.cat([block(x_tD[None])[0] for x_tD in x_TD.split(2048)])
    return relative_errors(output_TD.float(), target_TD).mean().item()


@torch.no_grad()
def refit_down(block: Any, x_TD: Tensor, target_TD: Tensor) -> None:
    """Sets all down projections to those with the least relative error, held near the present ones."""
    weights_ND = _down_weights(block)
    square_NN = weights_ND.new_zeros(len(weights_ND), len(weights_ND))
    change_ND = torch.zeros_like(weights_ND)
    for x_tD, target_tD in zip(x_TD.split(2048), target_TD.split(2048), strict=True):
        neurons_tN = _down_inputs(block, x_tD)
        scale_t1 = target_tD.norm(dim=-1, keepdim=True).clamp(min=1e-6).reciprocal()
        neurons_tN, missing_tD = neurons_tN * scale_t1, (target_tD - neurons_tN @ weights_ND) * scale_t1
        square_NN += neurons_tN.T @ neurons_tN
        change_ND += neurons_tN.T @ missing_tD
    # A neuron is held back in proportion to its own use, so that no unit of measure matters.
    square_NN.diagonal().mul_(1 + REFIT_RIDGE).add_(1e-9)
    _set_down_weights(block, weights_ND + torch.linalg.solve(square_NN.double(), change_ND.double()).float())


def _down_inputs(block: Any, x_TD: Tensor) -> Tensor:
    """[T, N]: what the down projections read, gates and routing weights applied; the shared expert first."""
    shared = block.shared_expert
    shared_TN = shared.act_fn(shared.gate_proj(x_TD)) * shared.up_proj(x_TD)
    _, weights_TK, indices_TK = block.gate(x_TD)
    routed_TN = _weighted_neurons(block.experts, x_TD, indices_TK, weights_TK)
    return torch.cat([shared_TN * block.shared_expert_gate(x_TD).sigmoid(), routed_TN], dim=1)


def _down_weights(block: Any) -> Tensor:
    """[N, D], in the order of `_down_inputs`."""
    routed_ND = block.experts.down_proj.transpose(1, 2).flatten(0, 1)
    return torch.cat([block.shared_expert.down_proj.weight.T, routed_ND])


def _set_down_weights(block: Any, weights_ND: Tensor) -> None:
    shared, experts = block.shared_expert.down_proj.weight, block.experts.down_proj
    shared.copy_(weights_ND[: shared.shape[1]].T)
    experts.copy_(weights_ND[shared.shape[1] :].unflatten(0, (len(experts), -1)).transpose(1, 2))


def heal_block(
    block: Any, x_TD: Tensor, target_TD: Tensor, *, epochs: int, learning_rate: float, seed: int
) -> None:
    """Trains every weight of a block on its relative error; the router is kept evenly used."""
    batches = list(_batches(len(x_TD), epochs, seed))
    if not batches:
        return
    optimizer = torch.optim.AdamW(block.parameters(), lr=learning_rate, betas=(0.9, 0.95), weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, learning_rate, total_steps=len(batches), pct_start=0.1
    )
    with _router_outputs(block) as routed:
        for batch in batches:
            with torch.autocast("cpu", torch.bfloat16):
                output_TD = block(x_TD[batch][None])[0]
            error = relative_errors(output_TD.float(), target_TD[batch]).mean()
            logits_TE, _, indices_TK = routed.pop()
            (error + BALANCE_WEIGHT * balance_loss(logits_TE, indices_TK)).backward()
            torch.nn.utils.clip_grad_norm_(block.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
            schedule.step()


def _batches(tokens: int, epochs: int, seed: int) -> Iterator[Tensor]:
    draw = torch.Generator().manual_seed(seed)
    for _ in range(epochs):
        yield from torch.randperm(tokens, generator=draw).split(BATCH_TOKENS)


class _router_outputs:
    """Within the block, the list that each call of the block's router is put into."""

    def __init__(self, block: Any):
        self.block, self.outputs = block, []

    def __enter__(self) -> list:
        self.handle = self.block.gate.register_forward_hook(lambda *call: self.outputs.append(call[2]))
        return self.outputs

    def __exit__(self, *_) -> None:
        self.handle.remove()
