"""Loads a checkpoint whole, its routed experts in low bits: read, quantised and let go one after the other,
so that beside the result there is never more than one expert in memory.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from dwellmoe.errors import UserError
from dwellmoe.experts.formats import parse_format
from dwellmoe.experts.formats.base import QuantisingFormat
from dwellmoe.experts.implementation import use_expert_lora
from dwellmoe.experts.low_bits import LowBitExperts, RecordLayout
from dwellmoe.experts.stand_ins import drop_parameters
from dwellmoe.experts.weights import ATTRIBUTE
from dwellmoe.families import MoeLayer
from dwellmoe.families.base import HELD_BYTES
from dwellmoe.families.not_finite import check_finite
from dwellmoe.offload.conversion import ExpertReader, conversion_of
from dwellmoe.offload.expert_weights import ExpertWeights, locate_experts
from dwellmoe.offload.io.shards import find_shards
from dwellmoe.offload.io.storage import Storage
from dwellmoe.offload.published_low_bits import form_of_checkpoint
from dwellmoe.offload.skeleton import load_without_experts


def load_in_low_bits(
    model_name: str, expert_format: str, dtype: str | torch.dtype, device: torch.device
) -> PreTrainedModel:
    """The causal language model of a checkpoint, its routed experts frozen in a format.

    expert_format  `nf4`, `int8`, `int4:group=64`, or `as_stored`
    dtype          of everything but the experts, and type to compute in

    Raises UserError for a checkpoint that cannot be loaded so.
    """
    format = parse_format(expert_format)
    shards = find_shards(model_name)
    form = form_of_checkpoint(model_name, shards)
    try:
        model, layers = load_without_experts(model_name, shards, dtype, device, form)
    except UserError as error:
        raise UserError(f"--expert_format {expert_format}: {error}") from None
    check_finite(model.named_parameters(), f"checkpoint '{model_name}'")
    weights = locate_experts(model, layers, shards, form)
    storage = Storage(shards.paths)
    try:
        _fill(model, layers, weights, storage, format)
    finally:
        storage.close()
    use_expert_lora(model)
    return model


def _fill(
    model: Any,
    layers: Sequence[MoeLayer],
    weights: ExpertWeights,
    storage: Storage,
    format: QuantisingFormat | None,
) -> None:
    reader = ExpertReader(weights, layers, storage)
    for layer in layers:
        experts: Any = model.get_submodule(layer.experts)
        conversion = conversion_of(model, layer, weights, format)
        held = LowBitExperts(conversion.layout(), layer.num_experts, model.device)
        biases = _biases(experts, held.layout, model.device)
        for expert in range(layer.num_experts):
            for name, tensors in reader.read(layer.index, expert).items():
                if name in biases:
                    biases[name].data[expert] = tensors[""]
                    continue
                found = conversion.matrix(expert, name, tensors)
                for field, target in held.stored(expert, name).items():
                    target.copy_(found[field])
        _hold(experts, held, biases)


def _biases(experts: Any, layout: RecordLayout, device: torch.device) -> dict[str, nn.Parameter]:
    shapes = dict(experts.named_parameters(recurse=False))
    return {
        name: nn.Parameter(torch.empty_like(shape, device=device), requires_grad=False)
        for name, shape in shapes.items()
        if name not in layout.matrices
    }


def _hold(experts: Any, held: LowBitExperts, biases: Mapping[str, nn.Parameter]) -> None:
    """Puts low-bit weights in the place of a module's parameters."""
    drop_parameters(experts, held.layout.matrices)
    for name, bias in biases.items():
        setattr(experts, name, bias)
    setattr(experts, ATTRIBUTE, held)
    setattr(experts, HELD_BYTES, held.layout.nbytes)
