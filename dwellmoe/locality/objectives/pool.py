"""A pool of experts for each request: what its tokens use beside the m experts that the request uses most.

Letters: L layers, B rows, T tokens a row, P = T - 1 pairs, E experts, K chosen, S tokens of valid pairs, R
runs of valid pairs: requests, or the parts of them that count.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from dwellmoe.cache.budget import layer_slots
from dwellmoe.errors import UserError
from dwellmoe.locality.pairs import (
    WIDTH,
    check_budget,
    check_width,
    in_pairs,
    runs_of,
    soft_largest,
    soft_membership,
    spread,
)

BY_RANK = True
PER_LAYER = True
BALANCE = 0.5


def check(*, budget: str = "25%", width: float = WIDTH, balance: float = BALANCE) -> None:
    check_budget(budget)
    check_width(width)
    if not balance >= 0:
        raise UserError(f"pool: balance {balance} must not be below 0")


def loss(
    rank_LBTE: Tensor,
    chosen_LBTK: Tensor,
    mask_BP: Tensor,
    *,
    budget: str = "25%",
    width: float = WIDTH,
    balance: float = BALANCE,
) -> Tensor:
    """1 - mean_t sum_e u_t[e] w_r[e] + balance * mean_r sum_e u_r[e] v_r[e].

    u_t: the soft membership of token t, divided by its sum; u_r: its mean over the tokens of request r. w_r,
    no gradient: how firmly an expert is among the m that request r uses most, by u_r. v_r, no gradient: the
    mean w of the batch's other requests, 0 for a single request. So the first two terms are the share of use
    outside the request's own pool, and the third is the share within the pools of others, about m/E where
    pools are spread evenly. With a balance of 1 nothing is gained by experts that all requests share.
    `budget`: m, experts a layer or percent. A soft form of EMO's pools of a document, arXiv 2605.06663.
    """
    experts, top_k = rank_LBTE.shape[-1], chosen_LBTK.shape[-1]
    membership_LSE = soft_membership(rank_LBTE, top_k, mask_BP, width)[:, in_pairs(mask_BP)]
    run_S = runs_of(mask_BP)
    tokens_R = torch.bincount(run_S).to(membership_LSE)
    use_LRE = _mean_use(membership_LSE, run_S, tokens_R)
    pool_LRE = _pools(use_LRE.detach(), layer_slots(_Layer(experts, top_k), budget), width)
    outside_LR = 1 - (use_LRE * pool_LRE).sum(-1)
    outside = (outside_LR * tokens_R).sum() / (len(outside_LR) * tokens_R.sum()).clamp(min=1)
    return outside + balance * _within_others(use_LRE, pool_LRE)


class _Layer(NamedTuple):
    """What a budget is a share of."""

    num_experts: int
    top_k: int
    layers: int = 1
    expert_bytes: tuple[int] = (0,)


def _mean_use(membership_LSE: Tensor, run_S: Tensor, tokens_R: Tensor) -> Tensor:
    """[L, R, E]: the share of each expert in a token's membership, its mean over the tokens of each run."""
    share_LSE = membership_LSE / membership_LSE.sum(-1, keepdim=True)
    zeros_LRE = share_LSE.new_zeros(len(share_LSE), len(tokens_R), share_LSE.shape[-1])
    return zeros_LRE.index_add(1, run_S, share_LSE) / tokens_R[:, None]


def _pools(use_LRE: Tensor, slots: int, width: float) -> Tensor:
    """How firmly each expert is among the `slots` that a request uses most."""
    if slots >= use_LRE.shape[-1]:
        return torch.ones_like(use_LRE)
    tau_L = width * spread(use_LRE).mean(-1).clamp(min=1e-6)
    return soft_largest(use_LRE, slots, tau_L[:, None, None])


def _within_others(use_LRE: Tensor, pool_LRE: Tensor) -> Tensor:
    """The mean share of a request's use that lies within the pools of the others."""
    layers, requests, _ = use_LRE.shape
    others_LRE = (pool_LRE.sum(1, keepdim=True) - pool_LRE) / max(requests - 1, 1)
    return (use_LRE * others_LRE).sum() / max(layers * requests, 1)
