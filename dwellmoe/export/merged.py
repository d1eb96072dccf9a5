"""The model with its adapter merged into the weights, as an ordinary checkpoint."""

from collections import Counter
from itertools import chain
from pathlib import Path

import torch
from torch import nn

from dwellmoe.base_model import check_base_model
from dwellmoe.errors import UserError
from dwellmoe.export.trained_adapter import base_name_of
from dwellmoe.families.text_model import quantised_by
from dwellmoe.files import give_usual_modes, replacing_path
from dwellmoe.loading import load_adapters, load_config, load_model, load_tokenizer
from dwellmoe.log import warn_once
from dwellmoe.merged_checkpoint import complete_checkpoint
from dwellmoe.offload.io.number_types import DTYPES
from dwellmoe.offload.io.packed_index import is_packed
from dwellmoe.offload.io.shards import find_shards
from dwellmoe.settings.model import ModelSettings


def export_merged(adapter: str, model_name: str | None, allow_other_base: bool, out: str) -> None:
    """Writes the base with the adapter merged into it. Needs memory for the whole model. Raises UserError."""
    base = ModelSettings(model_name=model_name or base_name_of(adapter))
    if is_packed(base.model_name):
        raise UserError(
            f"'{base.model_name}' is packed: name the checkpoint that was packed with --model_name"
        )
    check_base_model([adapter], base.model_name, allow_other_base)
    tokenizer = load_tokenizer(base)
    model = load_adapters(load_model(base), {"tuned": adapter}, expert_lora="peft")
    save_merged(model, tokenizer, Path(out), base)


def save_merged(model, tokenizer, folder: Path, base: ModelSettings) -> None:
    """Writes the model with its adapter merged into the weights, as an ordinary checkpoint; the folder
    appears complete or not at all. With `--dtype auto` every tensor keeps the type that it has in the base.
    What the base holds besides (the vision part of a multimodal one) is copied.
    """
    merged = model.merge_and_unload()
    is_text_part = is_part(merged, base)
    keep_types = base.dtype == "auto"
    if keep_types and not is_text_part:
        _cast_as_stored(merged, base.model_name)
    with replacing_path(folder) as beside:
        merged.save_pretrained(beside)
        if method := quantised_by(load_config(base)):
            warn_once(f"'{folder}': dequantised ({method}), without layers that the base has besides")
        else:
            complete_checkpoint(beside, base.model_name, is_part=is_text_part, keep_types=keep_types)
        tokenizer.save_pretrained(beside)
        give_usual_modes(beside)


def is_part(model, base: ModelSettings) -> bool:
    """Whether the model is the text part of a multimodal base."""
    return type(model.config) is not type(load_config(base))


def _cast_as_stored(model: nn.Module, base_name: str) -> None:
    """Gives every tensor the type that it has in the base's files; what is named otherwise there (experts, of
    which transformers makes one tensor) gets the type of most bytes; what is stored in low bits, bfloat16.
    """
    stored = find_shards(base_name).tensors
    bytes_by_type: Counter[str] = Counter()
    for tensor in stored.values():
        bytes_by_type[tensor.dtype] += tensor.nbytes
    usual = DTYPES.get(bytes_by_type.most_common(1)[0][0], torch.bfloat16)
    for name, weight in chain(model.named_parameters(), model.named_buffers()):
        dtype = DTYPES.get(stored[name].dtype, torch.bfloat16) if name in stored else usual
        if weight.is_floating_point() and (name in stored or isinstance(weight, nn.Parameter)):
            weight.data = weight.data.to(dtype)
