"""Knows how far each expert is in or out of the chosen set, softly; knows no objective.

Letters: L layers, B rows, T tokens a row, E experts.
"""

import torch
from torch import Tensor

from errors import UserError

WIDTH = 0.25
"""Temperature of the membership, in standard deviations of a layer's logits."""


def soft_membership(logits_LBTE: Tensor, top_k: int, width: float = WIDTH) -> Tensor:
    """float32 [L, B, T, E]: sigmoid((z - boundary) / tau), a gradient only for experts near the decision.

    The boundary lies midway between the K-th and the next logit, so that a chosen expert has more than 1/2
    and no other has; it and tau (`width` times the layer's spread of logits) carry no gradient.
    """
    z = logits_LBTE.float()
    with torch.no_grad():
        largest = z.topk(min(top_k + 1, z.shape[-1]), dim=-1).values
        boundary = largest[..., -2:].mean(-1, keepdim=True)
        squares_LBT = (z - z.mean(-1, keepdim=True)).square().sum(-1)
        spread_L = (squares_LBT / (z.shape[-1] - 1)).sqrt().mean(dim=(1, 2))  # z.std is several times slower
        tau = width * spread_L.clamp(min=1e-6)[:, None, None, None]
    return torch.sigmoid((z - boundary) / tau)


def check_width(width: float) -> None:
    """Raises UserError for a width that is no temperature."""
    if not width > 0:
        raise UserError(f"width {width}: the temperature of the membership must be above 0")
