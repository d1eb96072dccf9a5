"""Loads a checkpoint whole, its routed experts in low bits: read, quantised and let go one after the other,
so that beside the result there is never more than one expert in memory.

Letters: E experts, O and I the output and input width of a matrix.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import AutoConfig, PreTrainedModel

from dwellmoe.errors import UserError, first_line
from dwellmoe.experts.formats import parse_format
from dwellmoe.experts.formats.base import ExpertFormat, QuantisingFormat
from dwellmoe.experts.formats.stored import PlainWeights
from dwellmoe.experts.implementation import use_expert_lora
from dwellmoe.experts.low_bits import LowBitExperts, RecordLayout, record_layout
from dwellmoe.experts.stand_ins import drop_parameters
from dwellmoe.experts.weights import ATTRIBUTE
from dwellmoe.families import MoeLayer
from dwellmoe.families.base import HELD_BYTES
from dwellmoe.families.not_finite import check_finite
from dwellmoe.offload.expert_weights import ExpertWeights, Part, Piece, locate_experts
from dwellmoe.offload.io.memory import HostMemory
from dwellmoe.offload.io.shards import find_shards
from dwellmoe.offload.io.storage import Span, Storage
from dwellmoe.offload.published_low_bits import check_scales, published_form
from dwellmoe.offload.skeleton import load_without_experts
from dwellmoe.offload.slots import in_model_order


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
    try:
        form = published_form(AutoConfig.from_pretrained(model_name), model_name)
    except (OSError, KeyError) as error:
        raise UserError(f"checkpoint '{model_name}' cannot be loaded: {first_line(error)}") from None
    check_scales(shards, model_name)
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
    memory = HostMemory(max(weights.record_bytes))
    first = 0
    for layer in layers:
        experts: Any = model.get_submodule(layer.experts)
        parts, stored = weights.parts[layer.index], weights.formats[layer.index]
        held = LowBitExperts(_layout(experts, parts, stored, format), layer.num_experts, model.device)
        target = _Target(held, stored, format, experts.transposed)
        biases = _biases(experts, held.layout, model.device)
        for expert in range(layer.num_experts):
            _read(storage, weights.pieces[first + expert], memory)
            for name, tensors in _parameters(memory.tensor, parts).items():
                if name in biases:
                    biases[name].data[expert] = tensors[""]
                else:
                    target.put(expert, name, tensors, f"{layer.experts}.{name}, expert {expert},")
        _hold(experts, held, biases)
        first += layer.num_experts


class _Target(NamedTuple):
    """What the experts of a layer are put into."""

    held: LowBitExperts
    stored: Mapping[str, ExpertFormat]
    """The parameters that the checkpoint holds in low bits."""
    format: QuantisingFormat | None
    """To bring them into; None: as they are stored."""
    transposed: bool

    def put(self, expert: int, name: str, tensors: Mapping[str, Tensor], where: str) -> None:
        """Holds one matrix, given as the checkpoint stores it. `where` is its name in messages."""
        found = self._converted(name, tensors, where)
        for field, target in self.held.stored(expert, name).items():
            target.copy_(found[field])

    def _converted(self, name: str, tensors: Mapping[str, Tensor], where: str) -> Mapping[str, Tensor]:
        """Raises UserError for a matrix that is not finite."""
        if name in self.stored and self.format is None:
            return tensors
        weight_OI = self._weight(name, tensors)
        check_finite([(where, weight_OI)], "an expert cannot be held in low bits")
        return self.format.quantise(weight_OI) if self.format else {"weight": weight_OI}

    def _weight(self, name: str, tensors: Mapping[str, Tensor]) -> Tensor:
        if name in self.stored:
            shape_OI = self.held.layout.matrices[name].shape_OI
            return self.stored[name].dequantise(tensors, shape_OI, torch.float32)
        return tensors[""].T if self.transposed else tensors[""]


def _layout(
    experts: Any, parts: Sequence[Part], formats: Mapping[str, ExpertFormat], format: QuantisingFormat | None
) -> RecordLayout:
    """How a record is held: in the format asked for, or as it is stored."""
    types = {part.name: part.dtype for part in parts}
    shapes = {name: getattr(experts, name).shape[1:] for name in types}
    matrices = {}
    for name, shape in shapes.items():
        if len(shape) == 2:
            shape_OI = (shape[1], shape[0]) if experts.transposed else (shape[0], shape[1])
            matrices[name] = (format or formats.get(name) or PlainWeights(types[name]), shape_OI)
    return record_layout(matrices)


def _biases(experts: Any, layout: RecordLayout, device: torch.device) -> dict[str, nn.Parameter]:
    shapes = dict(experts.named_parameters(recurse=False))
    return {
        name: nn.Parameter(torch.empty_like(shape, device=device), requires_grad=False)
        for name, shape in shapes.items()
        if name not in layout.matrices
    }


def _read(storage: Storage, pieces: Sequence[Piece], memory: HostMemory) -> None:
    for piece in pieces:
        target = memory.bytes[piece.begin : piece.begin + piece.nbytes]
        storage.fill(Span(piece.shard, piece.offset, piece.nbytes, target, 0))


def _parameters(record: Tensor, parts: Sequence[Part]) -> dict[str, dict[str, Tensor]]:
    """Parameter -> field of its format ('' for plain weights) -> tensor, out of a checkpoint's record."""
    found: dict[str, dict[str, Tensor]] = {}
    for part in parts:
        tensor = record[part.begin : part.begin + part.nbytes].clone().view(part.dtype).view(part.shape)
        found.setdefault(part.name, {})[part.field] = in_model_order(tensor, part.order)
    return found


def _hold(experts: Any, held: LowBitExperts, biases: Mapping[str, nn.Parameter]) -> None:
    """Puts low-bit weights in the place of a module's parameters."""
    drop_parameters(experts, held.layout.matrices)
    for name, bias in biases.items():
        setattr(experts, name, bias)
    setattr(experts, ATTRIBUTE, held)
    setattr(experts, HELD_BYTES, held.layout.nbytes)
