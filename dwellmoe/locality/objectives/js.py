"""Jensen-Shannon divergence of consecutive gate distributions (CFMoE's loss, corrected)."""

import math

import torch
from torch import Tensor

from dwellmoe.locality.pairs import mean_over_pairs

PER_LAYER = True


def loss(logits_LBTE: Tensor, chosen_LBTK: Tensor, mask_BP: Tensor) -> Tensor:
    """JS(p_t, p_{t+1}) with the natural logarithm, in [0, ln 2]; Lin 1991."""
    log_p = logits_LBTE.float().log_softmax(-1)
    p = log_p.exp()
    log_mixture = torch.logaddexp(log_p[..., :-1, :], log_p[..., 1:, :]) - math.log(2)
    mixture = (p[..., :-1, :] + p[..., 1:, :]) / 2
    negative_entropy = (p * log_p).sum(-1)
    mean_negative_entropy = (negative_entropy[..., :-1] + negative_entropy[..., 1:]) / 2
    return mean_over_pairs(mean_negative_entropy - (mixture * log_mixture).sum(-1), mask_BP)
