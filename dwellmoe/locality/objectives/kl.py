"""Symmetric Kullback-Leibler divergence of consecutive gate distributions (CFMoE's loss, corrected)."""

from torch import Tensor

from dwellmoe.locality.pairs import mean_over_pairs

PER_LAYER = True


def loss(logits_LBTE: Tensor, chosen_LBTK: Tensor, mask_BP: Tensor) -> Tensor:
    """(KL(p_t, p_{t+1}) + KL(p_{t+1}, p_t)) / 2 = sum_e (p_t - p_{t+1}) (ln p_t - ln p_{t+1}) / 2."""
    log_p = logits_LBTE.float().log_softmax(-1)
    difference = log_p.exp().diff(dim=-2) * log_p.diff(dim=-2)
    return mean_over_pairs(difference.sum(-1) / 2, mask_BP)
