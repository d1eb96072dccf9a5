"""Expected misses of the cache that will be deployed: its policy and its budget, run on the batch's routing.

Letters: L layers, B rows, T tokens a row, P = T - 1 pairs, E experts, K chosen, S tokens of valid pairs.
"""

import numpy as np
import torch
from torch import Tensor

from dwellmoe.cache.policies.base import parse_policy
from dwellmoe.cache.replay.residency_mask import residents_before
from dwellmoe.cache.trace import DECODE, RoutingTrace, unsigned_ids
from dwellmoe.locality.pairs import (
    WIDTH,
    check_budget,
    check_width,
    in_pairs,
    mean_over_pairs,
    runs_of,
    soft_membership,
)

BY_RANK = True
PER_LAYER = True


def check(*, policy: str = "lru", budget: str = "25%", width: float = WIDTH) -> None:
    parse_policy(policy)
    check_budget(budget)
    check_width(width)


def loss(
    rank_LBTE: Tensor,
    chosen_LBTK: Tensor,
    mask_BP: Tensor,
    *,
    policy: str = "lru",
    budget: str = "25%",
    width: float = WIDTH,
) -> Tensor:
    """sum_e m_{t+1}[e] (1 - r_t[e]) / sum_e m_{t+1}[e]: the share of the soft membership m that is not
    resident (r, no gradient) before token t+1.

    The cache of a layer starts cold in each run of valid pairs, so that the loss does not depend on the order
    of the rows. `budget` as in the simulator: slots a layer or percent.
    """
    resident_LBPE = _residents(chosen_LBTK, mask_BP, rank_LBTE.shape[-1], policy, budget)
    membership = soft_membership(rank_LBTE, chosen_LBTK.shape[-1], mask_BP, width)[..., 1:, :]
    missing = (membership * ~resident_LBPE).sum(-1) / membership.sum(-1)
    return mean_over_pairs(missing, mask_BP)


def _residents(chosen_LBTK: Tensor, mask_BP: Tensor, experts: int, policy: str, budget: str) -> Tensor:
    """bool [L, B, P, E]: the experts that are resident before the second token of a pair."""
    valid_BT = in_pairs(mask_BP).cpu()
    before = torch.zeros(*chosen_LBTK.shape[:-1], experts, dtype=torch.bool)
    if valid_BT.any():
        run_S = runs_of(mask_BP.cpu()).int().numpy()
        chosen_SLK = chosen_LBTK.cpu()[:, valid_BT].transpose(0, 1).numpy()
        trace = RoutingTrace(
            unsigned_ids(chosen_SLK),
            phase=np.full(len(run_S), DECODE, np.uint8),
            request=run_S,
            num_experts=experts,
        )
        found_SLE = residents_before(trace, policy, budget, reset="request")
        before[:, valid_BT] = torch.from_numpy(found_SLE.transpose(1, 0, 2).copy())
    return before[..., 1:, :].to(chosen_LBTK.device)
