"""Fits a router in closed form to which experts contribute most to a token.

Letters: T tokens, D hidden size, E routed experts, M neurons of one of them, K chosen experts.
"""

from typing import Any

import torch
from torch import Tensor

RIDGE = 1e-2
"""Share of the inputs' mean square that is added to the diagonal."""


@torch.no_grad()
def contribution_norms(experts: Any, x_TD: Tensor) -> Tensor:
    """[T, E]: length of each expert's output for each token, its routing weight left out."""
    neurons_TEM = expert_neurons(experts, x_TD)
    gram_EMM = experts.down_proj.transpose(1, 2) @ experts.down_proj
    squared_TE = torch.einsum("tem,emn,ten->te", neurons_TEM, gram_EMM, neurons_TEM)
    return squared_TE.clamp(min=0).sqrt()


def expert_neurons(experts: Any, x_TD: Tensor) -> Tensor:
    """[T, E, M]: what the down projections of all experts read, chosen or not."""
    gate_up = torch.nn.functional.linear(x_TD, experts.gate_up_proj.flatten(0, 1))
    gate_TEM, up_TEM = gate_up.unflatten(-1, (experts.gate_up_proj.shape[0], -1)).chunk(2, dim=-1)
    return experts.act_fn(gate_TEM) * up_TEM


def fit_router(x_TD: Tensor, norms_TE: Tensor) -> Tensor:
    """[E, D]: router weights whose logits regress the log of each expert's contribution norm.

    Ridge regression on the log norms less their mean over a token's experts, so that softmax gives each
    expert the share of the norms that it is expected to have.
    """
    logs_TE = norms_TE.clamp(min=1e-12).log()
    return ridge(x_TD, logs_TE - logs_TE.mean(1, keepdim=True)).T


def ridge(x_TD: Tensor, y_TE: Tensor) -> Tensor:
    """[D, E]: least squares in float64, shrunk towards zero."""
    x_TD, y_TE = x_TD.double(), y_TE.double()
    square_DD = x_TD.T @ x_TD
    square_DD.diagonal().add_(RIDGE * square_DD.diagonal().mean())
    return torch.linalg.solve(square_DD, x_TD.T @ y_TE).float()


def recall(logits_TE: Tensor, norms_TE: Tensor, top_k: int) -> float:
    """Mean share of the K largest contributors among the K experts with the largest logits."""
    chosen_TE, largest_TE = (
        torch.zeros_like(scores).scatter(1, scores.topk(top_k).indices, 1.0)
        for scores in (logits_TE, norms_TE)
    )
    return (chosen_TE * largest_TE).sum().item() / (len(norms_TE) * top_k)
