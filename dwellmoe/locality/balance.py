"""The load-balancing term, which keeps the experts of a layer evenly used.

Letters: L layers, T tokens, E experts, K chosen experts a token, G groups of tokens.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from dwellmoe.locality.by_layer import mean_over_layers


def balance_loss(
    logits_TE: Tensor,
    chosen_TK: Tensor,
    valid_T: Tensor | None = None,
    group_T: Tensor | None = None,
    counts_E: Tensor | None = None,
) -> Tensor:
    """E * sum_e f_e P_e: f_e the share of choices that went to e, P_e its mean probability; the mean over
    layers where [T, E] has leading dimensions (valid_T and group_T are the same for all of them).

    1 where use is even, up to E where one expert takes all. Taken over the whole batch, so that a single
    request may stay local while the batch is balanced; with `group_T` (0..G-1) over each group of tokens, and
    the mean of those. `counts_E` (uses in more tokens than these) takes the place of the batch's own uses.
    Switch Transformer, arXiv 2101.03961, equations 4-6, generalised to K > 1.
    """
    p = logits_TE.float().softmax(-1)
    weight_T = p.new_ones(p.shape[-2]) if valid_T is None else valid_T.to(p)
    group_T = torch.zeros_like(weight_T, dtype=torch.long) if group_T is None else group_T
    groups = int(group_T.max()) + 1
    counts_GE = use_counts(chosen_TK, weight_T, p.shape[-1], group_T, groups)
    if counts_E is not None:
        counts_GE = counts_E.to(p).unsqueeze(-2)
    share_GE = counts_GE / counts_GE.sum(-1, keepdim=True).clamp(min=1)
    tokens_G = p.new_zeros(groups).index_add(0, group_T, weight_T).clamp(min=1)
    sums_GE = p.new_zeros(*p.shape[:-2], groups, p.shape[-1])
    sums_GE = sums_GE.index_add(-2, group_T, p * weight_T.unsqueeze(-1))
    return p.shape[-1] * (share_GE * sums_GE / tokens_G.unsqueeze(-1)).sum(-1).mean()


def balance_over_layers(
    logits: Sequence[Tensor],
    chosen: Sequence[Tensor],
    valid_T: Tensor,
    group_T: Tensor | None = None,
    counts_LE: Tensor | None = None,
) -> Tensor:
    """The mean of `balance_loss` over layers, given as a tensor [B, T, ...] each, one layer at a time."""

    def of_layer(logits_BTE: Tensor, chosen_BTK: Tensor, counts_E: Tensor | None) -> Tensor:
        return balance_loss(logits_BTE.flatten(0, 1), chosen_BTK.flatten(0, 1), valid_T, group_T, counts_E)

    counts = [None] * len(logits) if counts_LE is None else counts_LE
    return mean_over_layers(of_layer, logits, chosen, counts)


def use_counts(chosen_TK: Tensor, weight_T: Tensor, experts: int, group_T: Tensor, groups: int = 1) -> Tensor:
    """[..., G, E]: how often the tokens of each group chose each expert (-1: an empty slot, no use)."""
    slots_TK = chosen_TK.clamp(min=0) + (group_T * experts).unsqueeze(-1)
    uses_TK = weight_T.unsqueeze(-1) * (chosen_TK >= 0)
    counts = weight_T.new_zeros(*chosen_TK.shape[:-2], groups * experts)
    counts = counts.scatter_add(-1, slots_TK.flatten(-2), uses_TK.flatten(-2))
    return counts.unflatten(-1, (groups, experts))


def request_groups(segments_BT: Tensor) -> Tensor:
    """[B * T] the request that each token belongs to, 0..G-1 (padding joins request 0)."""
    rows_B1 = torch.arange(len(segments_BT), device=segments_BT.device).unsqueeze(-1)
    request_BT = segments_BT + rows_B1 * (segments_BT.max() + 1)
    valid_BT = segments_BT > 0
    groups_BT = torch.zeros_like(segments_BT)
    groups_BT[valid_BT] = request_BT[valid_BT].unique(return_inverse=True)[1]
    return groups_BT.flatten()


class UsesOfAStep:
    """Uses of each expert in the micro-batches of an optimizer step so far, over all ranks (the balance of
    arXiv 2501.11873: global uses, local probabilities).
    """

    def __init__(self, sum_over_ranks: Callable[[Tensor], Tensor]):
        self._sum_over_ranks = sum_over_ranks
        self._step = -1
        self._counts_LE: Tensor | None = None

    def add(self, step: int, chosen_LTK: Tensor, valid_T: Tensor, experts: int) -> Tensor:
        """[L, E]: the uses of this step, these tokens included. Every rank must call it alike."""
        one_group_T = torch.zeros_like(valid_T, dtype=torch.long)
        counts_LE = self._sum_over_ranks(use_counts(chosen_LTK, valid_T.float(), experts, one_group_T)[:, 0])
        if step == self._step and self._counts_LE is not None:
            counts_LE = counts_LE + self._counts_LE
        self._step, self._counts_LE = step, counts_LE
        return counts_LE
