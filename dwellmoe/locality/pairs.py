"""Knows which consecutive tokens count as a pair and how to average over pairs; knows no objective.

Letters: B rows, T tokens a row, P = T - 1 consecutive pairs.
"""

from torch import Tensor
from torch.nn import functional

IGNORED_LABEL = -100


def pair_mask(segment_ids_BT: Tensor, labels_BT: Tensor, include_prompt: bool) -> Tensor:
    """Bool [B, P]: both tokens belong to the same request, neither is padding (segment 0), and, unless
    prompts are included, both are tokens of the answer (their labels are not ignored).
    """
    left, right = segment_ids_BT[:, :-1], segment_ids_BT[:, 1:]
    mask_BP = (left == right) & (left > 0)
    if not include_prompt:
        answer_BT = labels_BT != IGNORED_LABEL
        mask_BP &= answer_BT[:, :-1] & answer_BT[:, 1:]
    return mask_BP


def in_pairs(mask_BP: Tensor) -> Tensor:
    """Bool [B, T]: the tokens of valid pairs."""
    return functional.pad(mask_BP, (0, 1)) | functional.pad(mask_BP, (1, 0))


def mean_over_pairs(values_LBP: Tensor, mask_BP: Tensor) -> Tensor:
    """Mean over layers and valid pairs: comparable across lengths and depths; 0 where no pair is valid."""
    mask_LBP = mask_BP.to(values_LBP.dtype).expand_as(values_LBP)
    return (values_LBP * mask_LBP).sum() / mask_LBP.sum().clamp(min=1)
