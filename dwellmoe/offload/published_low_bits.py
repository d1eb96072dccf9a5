"""Checkpoints that are published in low bits: which of them are read as they are, and their weights beside
the experts, which are dequantised.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import AutoConfig, PreTrainedConfig

from dwellmoe.errors import UserError, first_line
from dwellmoe.experts.formats.fp8 import BlockFp8
from dwellmoe.families.text_model import quantisation_of
from dwellmoe.offload.io.packed_index import METHOD as PACKED
from dwellmoe.offload.io.packed_index import PackedIndex, read_index
from dwellmoe.offload.io.shards import Shards

MXFP4, FP8 = "mxfp4", "fp8"
FP8_TYPE = "F8_E4M3"
FP8_BLOCK = (128, 128)
SCALES = "_scale_inv"
"""What the name of a weight's scales adds to the weight's name."""
SCALE_TYPES = {"F32": torch.float32, "BF16": torch.bfloat16}
FORMS = "16 or 32 bits, MXFP4 (GPT-OSS), FP8 in blocks (DeepSeek-V3, Qwen3-FP8), packed by `dwellmoe pack`"


class LowBitForm(NamedTuple):
    """How a checkpoint of low bits is published."""

    method: str
    block: tuple[int, int] = FP8_BLOCK
    """Of FP8: the rows and columns that share a scale."""
    packed: PackedIndex | None = None
    """Of a packed model: where its experts are. The rest is as in the checkpoint that was packed."""


def form_of_checkpoint(model_name: str, shards: Shards) -> LowBitForm | None:
    """The form of a checkpoint's weights; None for 16 and 32 bits.

    Raises UserError for a form that is not read, FP8 without its scales, and a checkpoint without a
    configuration.
    """
    try:
        form = published_form(AutoConfig.from_pretrained(model_name), model_name)
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"checkpoint '{model_name}' cannot be loaded: {first_line(error)}") from None
    check_scales(shards, model_name)
    return form


def published_form(config: PreTrainedConfig, name: str) -> LowBitForm | None:
    """The form of a checkpoint's weights; None for 16 and 32 bits. UserError for one that is not read."""
    fields = quantisation_of(config)
    if not fields:
        return None
    method, block = str(fields.get("quant_method", "unknown")), fields.get("weight_block_size")
    if method == PACKED:
        block = (fields.get("source") or {}).get("weight_block_size") or FP8_BLOCK
        return LowBitForm(PACKED, (int(block[0]), int(block[1])), read_index(name))
    if method == MXFP4:
        return LowBitForm(MXFP4)
    if method == FP8 and block:
        return LowBitForm(FP8, (int(block[0]), int(block[1])))
    raise other_form(name, "fp8 with one scale a tensor" if method == FP8 else method)


def other_form(name: str, method: str) -> UserError:
    """The error for a checkpoint that is quantised in another way."""
    return UserError(
        f"checkpoint '{name}' is quantised by {method}, in which experts neither train nor run from a cache: "
        f"give it in {FORMS}"
    )


def forget_quantisation(config: Any) -> None:
    """From now on transformers takes the weights for plain ones."""
    for part in (config, config.get_text_config()):
        if hasattr(part, "quantization_config"):
            del part.quantization_config


def check_scales(shards: Shards, name: str) -> None:
    """UserError for an FP8 weight without scales, which transformers would take for the weight itself."""
    for key, tensor in shards.tensors.items():
        if tensor.dtype == FP8_TYPE and key + SCALES not in shards.tensors:
            raise UserError(
                f"checkpoint '{name}': '{key}' is stored as {FP8_TYPE} without its scales ('{key}{SCALES}')"
            )


def with_fp8_dequantised(
    weights: Mapping[str, Tensor], form: LowBitForm, dtype: torch.dtype
) -> dict[str, Tensor]:
    """The same weights, those in FP8 in another type, without their scales."""
    return {
        name: _dequantised(weight, weights[name + SCALES], form, dtype)
        if name + SCALES in weights
        else weight
        for name, weight in weights.items()
        if not name.endswith(SCALES)
    }


def _dequantised(weight_OI: Tensor, scales: Tensor, form: LowBitForm, dtype: torch.dtype) -> Tensor:
    shape_OI = (weight_OI.shape[0], weight_OI.shape[1])
    stored = {"weight": weight_OI, "scales": scales.unsqueeze(0)}
    return BlockFp8(form.block).dequantise(stored, shape_OI, dtype)
