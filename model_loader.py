"""The models of the application: for evaluation, whole after training, saved with its adapter merged."""

import dataclasses
from collections import Counter
from itertools import chain
from pathlib import Path

import torch
from torch import nn
from transformers.integrations import is_deepspeed_zero3_enabled
from transformers.integrations.deepspeed import unset_hf_deepspeed_config

from config import Run
from dwellmoe.base_model import check_base_model
from dwellmoe.evaluation.evaluated_model import EvaluatedModel
from dwellmoe.evaluation.options import Options
from dwellmoe.families import find_moe_layers
from dwellmoe.families.text_model import quantised_by
from dwellmoe.files import give_usual_modes, replacing_path
from dwellmoe.loading import load_adapters, load_config, load_model, load_model_with_cache, load_tokenizer
from dwellmoe.log import warn_once
from dwellmoe.merged_checkpoint import complete_checkpoint
from dwellmoe.offload.io.number_types import DTYPES
from dwellmoe.offload.io.shards import find_shards
from dwellmoe.settings.model import ModelSettings
from trainer import LocalityTrainer


def load_evaluated_model(options: Options) -> EvaluatedModel:
    """The model of the options with all its adapters, and its tokenizer. Raises UserError."""
    tokenizer = load_tokenizer(options.model)
    adapters = options.adapters
    allow_other, expert_format = options.adapter.allow_other_base, options.model.expert_format
    check_base_model(adapters.values(), options.model.model_name, allow_other, expert_format)
    engine = options.engine
    model = load_model_with_cache(options.model, engine) if engine else load_model(options.model)
    find_moe_layers(model, options.model.moe_module_name)  # refuses a wrong name early
    if adapters:
        model = load_adapters(model, adapters, options.adapter.expert_lora)
    name = Path(options.model.model_name).name
    return EvaluatedModel(model.eval(), tokenizer, find_moe_layers(model), name)


def trained_model(run: Run, trainer: LocalityTrainer):
    """The whole trained model on this rank, in 16 or 32 bits: loaded from its files under ZeRO-3, which keeps
    only shards, and where its experts are held in low bits.
    """
    if not is_deepspeed_zero3_enabled() and not run.model.expert_format:
        return trainer.accelerator.unwrap_model(trainer.model)
    unset_hf_deepspeed_config()
    whole = dataclasses.replace(run.model, expert_format=None)
    return load_adapters(load_model(whole), {"tuned": str(run.folder)})


def save_merged(model, tokenizer, folder: Path, base: ModelSettings) -> None:
    """Writes the model with its adapter merged into the weights, as an ordinary checkpoint; the folder
    appears complete or not at all. With `--dtype auto` every tensor keeps the type that it has in the base.
    What the base holds besides (the vision part of a multimodal one) is copied.
    """
    merged = model.merge_and_unload()
    is_part = _is_part(merged, base)
    keep_types = base.dtype == "auto"
    if keep_types and not is_part:
        _cast_as_stored(merged, base.model_name)
    with replacing_path(folder) as beside:
        merged.save_pretrained(beside)
        if method := quantised_by(load_config(base)):
            warn_once(f"'{folder}': dequantised ({method}), without layers that the base has besides")
        else:
            complete_checkpoint(beside, base.model_name, is_part=is_part, keep_types=keep_types)
        tokenizer.save_pretrained(beside)
        give_usual_modes(beside)


def complete_trained(model, folder: Path, base: ModelSettings) -> None:
    """Adds to a model trained in full and saved in `folder` what its base holds besides."""
    complete_checkpoint(folder, base.model_name, is_part=_is_part(model, base), keep_types=False)


def _is_part(model, base: ModelSettings) -> bool:
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
