"""Knows how far each expert is in or out of the chosen set, softly; knows no objective.

Letters: L layers, B rows, T tokens a row, P consecutive pairs, E experts.
"""

import torch
from torch import Tensor

from dwellmoe.errors import UserError
from dwellmoe.locality.pairs import in_pairs

WIDTH = 0.25
"""Temperature of the membership, in standard deviations of a layer's logits."""


def soft_membership(logits_LBTE: Tensor, top_k: int, mask_BP: Tensor, width: float = WIDTH) -> Tensor:
    """float32 [L, B, T, E]: sigmoid((z - boundary) / tau), a gradient only for experts near the decision.

    The boundary lies midway between the K-th and the next logit, so that a chosen expert has more than 1/2
    and no other has. Tau is `width` times the layer's spread of logits, over the tokens of valid pairs.
    Neither carries a gradient.
    """
    z = logits_LBTE.float()
    with torch.no_grad():
        largest = z.topk(min(top_k + 1, z.shape[-1]), dim=-1).values
        boundary = largest[..., -2:].mean(-1, keepdim=True)
        squares_LBT = (z - z.mean(-1, keepdim=True)).square().sum(-1)
        spread_LBT = (squares_LBT / (z.shape[-1] - 1)).sqrt()  # z.std is several times slower
        counted_BT = in_pairs(mask_BP).to(spread_LBT)
        spread_L = (spread_LBT * counted_BT).sum(dim=(1, 2)) / counted_BT.sum().clamp(min=1)
        tau = width * spread_L.clamp(min=1e-6)[:, None, None, None]
    return torch.sigmoid((z - boundary) / tau)


def check_width(width: float) -> None:
    """Raises UserError for a width that is no temperature."""
    if not width > 0:
        raise UserError(f"width {width}: the temperature of the membership must be above 0")
