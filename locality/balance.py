"""The load-balancing term: keeps the experts of a layer evenly used; knows nothing of locality.

Letters: T tokens, E experts, K chosen experts a token.
"""

import torch
from torch import Tensor


def balance_loss(logits_TE: Tensor, chosen_TK: Tensor, valid_T: Tensor | None = None) -> Tensor:
    """E * sum_e f_e P_e of one layer: f_e the share of choices that went to e, P_e its mean probability.

    1 where use is even, up to E where one expert takes all. Taken over the whole batch, so that a single request may
    stay local while the batch is balanced. Switch Transformer, arXiv 2101.03961, equations 4-6, generalised to K > 1.
    """
    if valid_T is not None:
        logits_TE, chosen_TK = logits_TE[valid_T], chosen_TK[valid_T]
    experts = logits_TE.shape[-1]
    share_E = torch.bincount(chosen_TK.flatten(), minlength=experts).float() / max(chosen_TK.numel(), 1)
    mean_probability_E = logits_TE.float().softmax(-1).mean(0)
    return experts * (share_E * mean_probability_E).sum()
