"""Probability mass on the experts of the last tokens: pulls a token to what was just used, never back."""

import torch
from torch import Tensor
from torch.nn import functional

from dwellmoe.errors import UserError
from dwellmoe.locality.pairs import mean_over_pairs

PER_LAYER = True


def check(*, window: int = 1, decay: float = 0.7) -> None:
    if window < 1 or not 0 < decay <= 1:
        raise UserError(f"reuse: window must be at least 1 and decay in (0, 1], got {window} and {decay}")


def loss(
    logits_LBTE: Tensor, chosen_LBTK: Tensor, mask_BP: Tensor, *, window: int = 1, decay: float = 0.7
) -> Tensor:
    """-log sum_e p_{t+1}[e] w_t[e], with w_t[e] = decay^a for an expert last chosen a < `window` tokens
    before t, and 0 for any other; the chosen sets carry no gradient. After ReMoE's reuse loss (window 1).
    """
    weight = _recency(chosen_LBTK, mask_BP, logits_LBTE.shape[-1], window, decay)[..., :-1, :]
    log_p = logits_LBTE.float().log_softmax(-1)[..., 1:, :]
    return mean_over_pairs(-(log_p + weight.log()).logsumexp(-1), mask_BP)


@torch.no_grad()
def _recency(chosen_LBTK: Tensor, mask_BP: Tensor, experts: int, window: int, decay: float) -> Tensor:
    """[L, B, T, E]: 1 for the experts of this token, decay^a for those chosen a tokens ago in an unbroken run
    of valid pairs.
    """
    used = torch.zeros(*chosen_LBTK.shape[:-1], experts, device=chosen_LBTK.device)
    used.scatter_add_(-1, chosen_LBTK.clamp(min=0), (chosen_LBTK >= 0).to(used))
    recent, linked = used, decay * mask_BP.to(used).unsqueeze(-1)
    for _ in range(window - 1):
        recent = torch.maximum(used, functional.pad(recent[..., :-1, :] * linked, (0, 0, 1, 0)))
    return recent
