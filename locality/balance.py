"""The load-balancing term: keeps the experts of a layer evenly used; knows nothing of locality.

Letters: L layers, T tokens, E experts, K chosen experts a token.
"""

import torch
from torch import Tensor


def balance_loss(logits_TE: Tensor, chosen_TK: Tensor, valid_T: Tensor | None = None) -> Tensor:
    """E * sum_e f_e P_e: f_e the share of choices that went to e, P_e its mean probability; the mean over
    layers where [T, E] has leading dimensions (valid_T is the same for all of them).

    1 where use is even, up to E where one expert takes all. Taken over the whole batch, so that a single
    request may stay local while the batch is balanced. Switch Transformer, arXiv 2101.03961, equations 4-6,
    generalised to K > 1.
    """
    p = logits_TE.float().softmax(-1)
    weight_T = torch.ones_like(p[..., 0]) if valid_T is None else valid_T.to(p).expand(p.shape[:-1])
    tokens = weight_T.sum(-1, keepdim=True).clamp(min=1)
    uses_TK = weight_T.unsqueeze(-1).expand(chosen_TK.shape)
    counts_E = p.new_zeros(*p.shape[:-2], p.shape[-1])
    counts_E = counts_E.scatter_add(-1, chosen_TK.flatten(-2), uses_TK.flatten(-2))
    share_E = counts_E / (tokens * chosen_TK.shape[-1])
    mean_probability_E = (p * weight_T.unsqueeze(-1)).sum(-2) / tokens
    return p.shape[-1] * (share_E * mean_probability_E).sum(-1).mean()
