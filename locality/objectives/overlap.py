"""Soft overlap of consecutive expert sets: acts only on experts near the decision, where routing is won or
lost.
"""

import torch
from torch import Tensor

from locality.pairs import mean_over_pairs

WIDTH = 0.25
"""Temperature of the membership, in standard deviations of a layer's logits."""


def loss(logits_LBTE: Tensor, chosen_LBTK: Tensor, mask_BP: Tensor) -> Tensor:
    """1 - sum_e m_t[e] m_{t+1}[e] / K with the membership m = sigmoid((z - boundary) / tau).

    The boundary lies midway between the K-th and the next logit, so that a chosen expert has m > 1/2 and no
    other has; it and tau (WIDTH times the layer's spread of logits) carry no gradient.
    """
    z = logits_LBTE.float()
    top_k = chosen_LBTK.shape[-1]
    with torch.no_grad():
        largest = z.topk(min(top_k + 1, z.shape[-1]), dim=-1).values
        boundary = largest[..., -2:].mean(-1, keepdim=True)
        tau = WIDTH * z.std(dim=-1).mean(dim=(1, 2)).clamp(min=1e-6)[:, None, None, None]
    membership = torch.sigmoid((z - boundary) / tau)
    shared = (membership[..., :-1, :] * membership[..., 1:, :]).sum(-1)
    return mean_over_pairs(1 - shared / top_k, mask_BP)
