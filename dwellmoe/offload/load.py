"""Loads a checkpoint with its experts in a cache: `offload`, and `load_with_cache` for given settings."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from dwellmoe.errors import UserError, unknown_name
from dwellmoe.experts.formats import parse_format
from dwellmoe.experts.formats.base import QuantisingFormat
from dwellmoe.families import MoeLayer
from dwellmoe.offload.attach import attach
from dwellmoe.offload.check_settings import check_settings, naming
from dwellmoe.offload.decode_attention import attend_fast
from dwellmoe.offload.dense_layers import hold_dense_layers, speed_up_routers, speed_up_single_rows
from dwellmoe.offload.engine import Engine
from dwellmoe.offload.expert_weights import ExpertWeights, locate_experts
from dwellmoe.offload.io.shards import Shards, find_shards
from dwellmoe.offload.io.storage import Storage
from dwellmoe.offload.packed import find_packed
from dwellmoe.offload.published_low_bits import LowBitForm, form_of_checkpoint
from dwellmoe.offload.skeleton import load_shapes, load_without_experts
from dwellmoe.offload.stored_format import check_stored_in
from dwellmoe.settings.engine import EngineSettings


def offload(
    path: str | Path,
    *,
    budget: str = "25%",
    policy: str = "lru",
    dtype: str | torch.dtype = "auto",
    device: str | torch.device | None = None,
    **options: Any,
) -> PreTrainedModel:
    """The causal language model of a checkpoint, its routed experts in a cache over the checkpoint's files.

    path     folder of a safetensors checkpoint, or a name on the Hugging Face hub
    budget   memory for experts: experts a layer ("8"), a share of each layer's experts ("25%"), or bytes
             ("6GiB")
    policy   eviction policy of the decode cache; any that needs no knowledge of the future
    dtype    type to compute in: "auto" for the checkpoint's, "bfloat16", "float32", ...
    device   None: the first GPU if there is one, else the CPU
    options  further fields of `EngineSettings`, such as ram_budget="50%" or prefetch_budget=4

    `model.generate(...)` and `model(...)` work as for a model in memory, for inference. `engine_of(model)` is
    its engine: hit counts, memory, statistics, and `close()`. Raises UserError for a missing folder, settings
    that cannot work, and a checkpoint whose experts cannot be read in place.
    """
    fields = {field.name for field in dataclasses.fields(EngineSettings)} - {"expert_budget", "decode_policy"}
    for option in options:
        if option not in fields:
            raise unknown_name("engine option", option, fields)
    settings = EngineSettings(expert_budget=str(budget), decode_policy=policy, **options)
    if device is None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
    return load_with_cache(str(path), settings, dtype, device)[0]


def load_with_cache(
    model_name: str,
    settings: EngineSettings,
    dtype: str | torch.dtype = "auto",
    device: str | torch.device = "cpu",
    storage: Storage | None = None,
    expert_format: str | None = None,
) -> tuple[PreTrainedModel, Engine]:
    """The model with its experts in a cache over its own checkpoint, and the engine behind it.

    expert_format  as which the experts must be stored; None for any

    `model.generate` and `model(...)` work as always; close the engine when done, or use it as a `with` block.
    Raises UserError for settings or a checkpoint that cannot work.
    """
    check_settings(settings)
    dense_format = _dense_format(settings.dense_format)
    shards = find_shards(model_name)
    form = form_of_checkpoint(model_name, shards)
    if expert_format:
        stored = _located(*load_shapes(model_name, form), shards, form, settings.packed)
        check_stored_in(expert_format, model_name, stored)
    model, layers = load_without_experts(model_name, shards, dtype, torch.device(device), form)
    if dense_format:
        hold_dense_layers(model, layers, dense_format)
    else:
        speed_up_single_rows(model, layers)
    speed_up_routers(model, layers)
    attend_fast(model)
    weights = _located(model, layers, shards, form, settings.packed)
    if not settings.verify_reads:
        weights = weights._replace(checksums=())
    elif not weights.checksums:
        raise UserError(
            f"--verify_reads: '{model_name}' has no checksums: `dwellmoe pack` writes a model with them"
        )
    storage = storage or Storage(weights.shards.paths, settings.io)
    return model, attach(model, layers, weights, storage, settings)


def _located(
    model: nn.Module, layers: Sequence[MoeLayer], shards: Shards, form: LowBitForm | None, packed: str
) -> ExpertWeights:
    """The experts of a checkpoint, or of the packed model that is to be read in its place."""
    weights = locate_experts(model, layers, shards, form)
    return find_packed(model, layers, weights, packed) if packed else weights


def _dense_format(spec: str) -> QuantisingFormat | None:
    """None for none. Raises UserError."""
    if not spec:
        return None
    with naming("dense_format", spec):
        return parse_format(spec)
