"""Soft overlap of consecutive expert sets: acts only on experts near the boundary of being chosen."""

from torch import Tensor

from dwellmoe.locality.pairs import WIDTH, check_width, mean_over_pairs, soft_membership

BY_RANK = True
PER_LAYER = True


def check(*, width: float = WIDTH) -> None:
    check_width(width)


def loss(rank_LBTE: Tensor, chosen_LBTK: Tensor, mask_BP: Tensor, *, width: float = WIDTH) -> Tensor:
    """1 - sum_e m_t[e] m_{t+1}[e] / K with the soft membership m."""
    top_k = chosen_LBTK.shape[-1]
    membership = soft_membership(rank_LBTE, top_k, mask_BP, width)
    shared = (membership[..., :-1, :] * membership[..., 1:, :]).sum(-1)
    return mean_over_pairs(1 - shared / top_k, mask_BP)
