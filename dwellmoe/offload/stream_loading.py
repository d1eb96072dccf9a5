"""Loads a checkpoint for training without its routed experts, which are read from it in every step.

Letters: E experts of a layer.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from dwellmoe.cache.budget import check_capacity, is_whole, parse_bytes
from dwellmoe.errors import UserError
from dwellmoe.experts.implementation import use_expert_lora
from dwellmoe.experts.stand_ins import drop_parameters
from dwellmoe.experts.weights import ATTRIBUTE
from dwellmoe.families import MoeLayer
from dwellmoe.families.base import HELD_BYTES
from dwellmoe.families.not_finite import check_finite
from dwellmoe.offload.budgets import machine_memory_bytes
from dwellmoe.offload.check_settings import naming
from dwellmoe.offload.expert_layout import check_formats, in_model_order, layouts_of
from dwellmoe.offload.expert_stream import ExpertStream
from dwellmoe.offload.expert_weights import ExpertWeights, Part, Piece, locate_experts
from dwellmoe.offload.io.memory import HostMemory, give_freed_memory_back
from dwellmoe.offload.io.shards import Shards, find_shards
from dwellmoe.offload.io.storage import Span, Storage
from dwellmoe.offload.published_low_bits import LowBitForm, form_of_checkpoint
from dwellmoe.offload.skeleton import load_shapes, load_without_experts
from dwellmoe.offload.slots import bytes_of_slot
from dwellmoe.offload.stored_format import check_stored_in
from dwellmoe.offload.streamed_weights import StreamedWeights
from dwellmoe.settings.engine import EngineSettings


def load_streamed(
    model_name: str,
    expert_budget: str,
    dtype: str | torch.dtype,
    device: torch.device,
    expert_format: str | None = None,
) -> PreTrainedModel:
    """The causal language model of a checkpoint, its routed experts frozen and read when they are needed.

    expert_budget  host memory for experts: experts a layer ("8"), a share of all experts ("25%"), or
                   bytes ("6GiB"); at least all experts of one layer
    dtype          of everything but the experts, and type to compute in
    expert_format  as which the experts must be stored; None for any

    Raises UserError for a checkpoint that cannot be read so, and for a budget that is too small or too large.
    """
    checked = check_streamed(model_name, expert_budget, expert_format)
    give_freed_memory_back()
    weights = checked.weights
    model, layers = load_without_experts(model_name, checked.shards, dtype, device, checked.form)
    layouts = layouts_of(model, layers, weights)
    check_formats(layouts, device, model.dtype)
    stream = ExpertStream(
        weights,
        layers=layers,
        layouts=layouts,
        slots=checked.slots,
        storage=Storage(weights.shards.paths),
        readers=EngineSettings.readers,
        pinned=device.type == "cuda",
    )
    for layer in layers:
        _stream_layer(model, layer, stream)
    check_finite(model.named_parameters(), f"checkpoint '{model_name}'")
    use_expert_lora(model)
    return model


class Streamable(NamedTuple):
    """A checkpoint whose experts can be streamed within a budget."""

    shards: Shards
    form: LowBitForm | None
    weights: ExpertWeights
    slots: int
    """That the budget pays for."""


def check_streamed(model_name: str, expert_budget: str, expert_format: str | None = None) -> Streamable:
    """Where the experts of a checkpoint lie, and the slots that a budget pays for; loads no weights.

    Raises UserError as `load_streamed`.
    """
    shards = find_shards(model_name)
    try:
        form = form_of_checkpoint(model_name, shards)
        model, layers = load_shapes(model_name, form)
        weights = locate_experts(model, layers, shards, form)
    except UserError as error:
        raise UserError(f"--expert_budget {expert_budget}: {error}") from None
    check_stored_in(expert_format, model_name, weights)
    slot_bytes = bytes_of_slot(max(weights.record_bytes))
    slots = slots_of(expert_budget, [layer.num_experts for layer in layers], slot_bytes)
    return Streamable(shards, form, weights, slots)


def slots_of(expert_budget: str, num_experts: Sequence[int], slot_bytes: int) -> int:
    """Slots that a budget pays for, for experts of all layers. Raises UserError where they cannot hold the
    largest layer, and where they are more than the machine's memory.

    num_experts  of each layer
    """
    most, all_experts = max(num_experts), sum(num_experts)
    slots = min(all_experts, _affordable(expert_budget.strip(), num_experts, slot_bytes))
    if slots < most:
        least_mib, least_percent = -(-most * slot_bytes // 2**20), math.ceil(100 * most / all_experts)
        raise UserError(
            f"--expert_budget {expert_budget} holds {slots} experts: training needs the {most} of a layer at "
            f"once, give {least_mib}MiB or {least_percent}% at least"
        )
    if slots * slot_bytes > machine_memory_bytes():
        raise UserError(
            f"--expert_budget {expert_budget}: {slots} experts take {slots * slot_bytes:,} bytes, this "
            f"machine has {machine_memory_bytes():,}"
        )
    return slots


def _affordable(text: str, num_experts: Sequence[int], slot_bytes: int) -> int:
    """Experts of this size that a budget pays for."""
    with naming("expert_budget", text):
        check_capacity(text)
    if is_whole(text):
        return int(text) * len(num_experts)
    if text.endswith("%"):
        return int(float(text[:-1]) / 100 * sum(num_experts) + 1e-9)
    return parse_bytes(text, "--expert_budget") // slot_bytes


def _stream_layer(model: Any, layer: MoeLayer, stream: ExpertStream) -> None:
    """Puts streamed weights in the place of a layer's matrices."""
    experts: Any = model.get_submodule(layer.experts)
    layout = stream.layouts[layer.index]
    drop_parameters(experts, layout.shapes_OI)
    for name, bias in _biases(model, layer, stream).items():
        setattr(experts, name, bias)
    if layout.formats:
        setattr(experts, HELD_BYTES, sum(part.nbytes for part in layout.parts if not _is_bias(part)))
    setattr(experts, ATTRIBUTE, StreamedWeights(stream, layer.index, experts.transposed, model.dtype))


def _is_bias(part: Part) -> bool:
    return part.name.endswith("_bias")


def _biases(model: Any, layer: MoeLayer, stream: ExpertStream) -> dict[str, nn.Parameter]:
    """The biases of a layer's experts, [E, ...] each, by name: they stay in memory."""
    found = {}
    for part in filter(_is_bias, stream.weights.parts[layer.index]):
        bias = torch.empty(layer.num_experts, *part.shape, dtype=model.dtype, device=model.device)
        for expert in range(layer.num_experts):
            stored = _read(stream.storage, stream.pieces(layer.index, expert), part)
            bias[expert] = in_model_order(stored, part.order)
        found[part.name] = nn.Parameter(bias, requires_grad=False)
    return found


def _read(storage: Storage, pieces: Sequence[Piece], part: Part) -> Tensor:
    """One parameter of an expert, as the checkpoint has it."""
    memory = HostMemory(part.nbytes)
    for piece in pieces:
        begin = max(part.begin, piece.begin)
        nbytes = min(part.begin + part.nbytes, piece.begin + piece.nbytes) - begin
        if nbytes > 0:
            offset = piece.offset + begin - piece.begin
            target = memory.bytes[begin - part.begin :][:nbytes]
            storage.fill(Span(piece.shard, offset, nbytes, target, 0))
    return memory.tensor[: part.nbytes].view(part.dtype).view(part.shape)
