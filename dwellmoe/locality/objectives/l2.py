"""Mean squared difference of consecutive gate distributions (CFMoE's loss)."""

from torch import Tensor

from dwellmoe.locality.pairs import mean_over_pairs

PER_LAYER = True


def loss(logits_LBTE: Tensor, chosen_LBTK: Tensor, mask_BP: Tensor) -> Tensor:
    """mean_e (p_t[e] - p_{t+1}[e])^2."""
    p = logits_LBTE.float().softmax(-1)
    return mean_over_pairs(p.diff(dim=-2).square().mean(-1), mask_BP)
