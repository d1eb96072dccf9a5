"""Attention of the engine: torch's, and for a new token by itself in bfloat16 a compiled pass."""

from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from dwellmoe.experts.kernels import one_query

NAME, TORCHS = "sdpa_one_query", "sdpa"


def _forward(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    **options: Any,
) -> tuple[Tensor, Tensor | None]:
    """As transformers calls it: the output is [B, T, H, D]."""
    asks_more = torch.is_grad_enabled() or attention_mask is not None or options.get("dropout")
    if asks_more or not one_query.takes(query, key, value):
        return sdpa_attention_forward(module, query, key, value, attention_mask, **options)
    scaling = options.get("scaling") or query.shape[-1] ** -0.5
    return one_query.attend(query, key, value, scaling), None


AttentionInterface.register(NAME, _forward)
AttentionMaskInterface.register(NAME, sdpa_mask)


def attend_fast(model: PreTrainedModel) -> None:
    """From now on single tokens take the pass, where the model attends by torch's function."""
    decoder: Any = model.get_decoder()  # beside it may be models of images or sound
    if decoder.config._attn_implementation == TORCHS:
        decoder.set_attn_implementation(NAME)
