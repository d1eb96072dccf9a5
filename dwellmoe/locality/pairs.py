"""Which consecutive tokens form a pair, the mean over pairs, and how firmly each expert is in the chosen set.

Letters: L layers, B rows, T tokens a row, P = T - 1 consecutive pairs, E experts, S tokens of valid pairs, R
runs of them.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from dwellmoe.cache.budget import check_capacity, is_whole
from dwellmoe.data.collate import IGNORED_LABEL
from dwellmoe.errors import UserError

WIDTH = 0.25
"""Temperature of the membership, in standard deviations of a layer's logits."""


def segments_of(batch: Mapping[str, Any]) -> Tensor:
    """int64 [B, T]: n on the n-th request of a row, 0 on padding.

    From `segment_ids`, else from `attention_mask` (one request a row), else from `position_ids` (0 begins a
    request), else every token of `input_ids` counts and a row is one request. UserError for a batch that has
    none of them, and for an attention mask that is not [B, T].
    """
    if (segments_BT := batch.get("segment_ids")) is not None:
        return segments_BT
    if (mask := batch.get("attention_mask")) is not None:
        if mask.dim() != 2:
            raise UserError(f"attention_mask: expected [rows, tokens], got the shape {list(mask.shape)}")
        return mask.long()
    if (positions_BT := batch.get("position_ids")) is not None:
        return (positions_BT == 0).long().cumsum(-1)
    if (ids_BT := batch.get("input_ids")) is not None:
        return torch.ones_like(ids_BT)
    raise UserError("the batch holds none of segment_ids, attention_mask, position_ids and input_ids")


def pair_mask(segment_ids_BT: Tensor, labels_BT: Tensor | None, include_prompt: bool) -> Tensor:
    """Bool [B, P]: both tokens belong to the same request, neither is padding (segment 0), and, unless
    prompts are included, both are tokens of the answer (their labels are not ignored).
    """
    left, right = segment_ids_BT[:, :-1], segment_ids_BT[:, 1:]
    mask_BP = (left == right) & (left > 0)
    if not include_prompt:
        if labels_BT is None:
            raise UserError("pairs of the answer alone need labels, which tell it from the prompt")
        answer_BT = labels_BT != IGNORED_LABEL
        mask_BP &= answer_BT[:, :-1] & answer_BT[:, 1:]
    return mask_BP


def in_pairs(mask_BP: Tensor) -> Tensor:
    """Bool [B, T]: the tokens of valid pairs."""
    return functional.pad(mask_BP, (0, 1)) | functional.pad(mask_BP, (1, 0))


def runs_of(mask_BP: Tensor) -> Tensor:
    """int64 [S]: of each token of valid pairs, in order, the unbroken run of pairs it is in, 0..R-1: its
    request, or the part of it that counts.
    """
    begins_BT = ~functional.pad(mask_BP, (1, 0))
    return begins_BT[in_pairs(mask_BP)].cumsum(0) - 1


def mean_over_pairs(values_LBP: Tensor, mask_BP: Tensor) -> Tensor:
    """Mean over layers and valid pairs: comparable across lengths and depths; 0 where no pair is valid."""
    mask_LBP = mask_BP.to(values_LBP.dtype).expand_as(values_LBP)
    return (values_LBP * mask_LBP).sum() / mask_LBP.sum().clamp(min=1)


def soft_membership(rank_LBTE: Tensor, top_k: int, mask_BP: Tensor, width: float = WIDTH) -> Tensor:
    """float32 [L, B, T, E]: sigmoid((z - boundary) / tau), a gradient only for experts near the decision.

    z is what the router ranks its experts by; the membership of an expert that it may not choose (-inf) is 0.
    The boundary lies midway between the K-th and the next z, so that a chosen expert has more than 1/2 and no
    other has. Tau is `width` times the layer's spread of z, over the tokens of valid pairs. Neither carries a
    gradient.
    """
    z = rank_LBTE.float()
    with torch.no_grad():
        spread_LBT = spread(z)
        counted_BT = in_pairs(mask_BP).to(spread_LBT)
        spread_L = (spread_LBT * counted_BT).sum(dim=(1, 2)) / counted_BT.sum().clamp(min=1)
        tau = width * spread_L.clamp(min=1e-6)[:, None, None, None]
    return soft_largest(z, top_k, tau)


def soft_largest(z: Tensor, count: int, tau: Tensor) -> Tensor:
    """sigmoid((z - boundary) / tau): how firmly each value is among the `count` largest of the last axis.

    The boundary lies midway between the last of them and the next, and carries no gradient.
    """
    with torch.no_grad():
        largest = z.topk(min(count + 1, z.shape[-1]), dim=-1).values
        boundary = _between(largest[..., -2:])
    return torch.sigmoid((z - boundary) / tau)


def _between(last_two: Tensor) -> Tensor:
    """The middle of the two last values; where the last is -inf, just below the other."""
    middle = last_two.mean(-1, keepdim=True)
    return torch.where(middle.isneginf(), last_two[..., :1] - 1e-6, middle)


def spread(z: Tensor) -> Tensor:
    """Standard deviation over the last axis, without values of -inf; `std` is several times slower."""
    allowed = z.isfinite()
    if allowed.all():
        mean, count = z.mean(-1, keepdim=True), z.shape[-1]
        return ((z - mean).square().sum(-1) / (count - 1)).sqrt()
    count, z = allowed.sum(-1), z.masked_fill(~allowed, 0)
    mean = z.sum(-1, keepdim=True) / count[..., None]
    return (((z - mean).square() * allowed).sum(-1) / (count - 1).clamp(min=1)).sqrt()


def check_width(width: float) -> None:
    """UserError for a width that is no temperature."""
    if not width > 0:
        raise UserError(f"width {width}: the temperature of the membership must be above 0")


def check_budget(budget: str) -> None:
    """UserError unless a budget is slots a layer or a percentage: the size of an expert is not known here."""
    check_capacity(budget)
    if not is_whole(budget) and not budget.endswith("%"):
        raise UserError(f"budget {budget}: give experts a layer (8) or a percentage of them (25%)")
