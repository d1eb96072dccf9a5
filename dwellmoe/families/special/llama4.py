"""Llama 4: the router returns (sigmoid scores of all experts, logits)."""

import torch
from torch import Tensor

from dwellmoe.families.base import MoeFamily, RouterTriple


def _read(output: tuple, top_k: int) -> RouterTriple:
    scores_TE, logits_TE = output
    weights_TK, indices_TK = scores_TE.topk(top_k, dim=-1)  # the score of an expert not chosen is zero
    return logits_TE, weights_TK, indices_TK


def _write(output: tuple, weights_TK: Tensor, indices_TK: Tensor) -> tuple:
    # An expert may stand twice in a row, the second time with weight 0.
    scores_TE = torch.zeros_like(output[0]).scatter_add(1, indices_TK, weights_TK.to(output[0].dtype))
    return scores_TE, output[1]


FAMILY = MoeFamily(model_types=("llama4", "llama4_text"), read=_read, write=_write)
