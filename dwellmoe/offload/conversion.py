"""Reads the experts of a checkpoint one after the other, and brings their matrices into a format.

Letters: O and I the output and input width of a matrix.
"""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from dwellmoe.experts.formats.base import ExpertFormat, QuantisingFormat
from dwellmoe.experts.formats.stored import PlainWeights
from dwellmoe.experts.low_bits import RecordLayout, record_layout
from dwellmoe.experts.weights import shape_OI_of
from dwellmoe.families import MoeLayer
from dwellmoe.families.not_finite import check_finite
from dwellmoe.offload.expert_layout import in_model_order
from dwellmoe.offload.expert_weights import ExpertWeights, Part
from dwellmoe.offload.io.memory import HostMemory
from dwellmoe.offload.io.storage import ReadFault, Span, Storage

Parameters = dict[str, dict[str, Tensor]]
"""Parameter -> field of its format ('' for plain weights) -> tensor."""


class ExpertReader:
    """Reads one expert at a time, as the checkpoint has it; each thread needs its own."""

    def __init__(self, weights: ExpertWeights, layers: Sequence[MoeLayer], storage: Storage) -> None:
        self.weights, self.storage = weights, storage
        self._firsts = [0, *itertools.accumulate(layer.num_experts for layer in layers)]
        self._memory = HostMemory(max(weights.record_bytes))

    def read(self, layer: int, expert: int) -> Parameters:
        """The tensors of an expert, in memory of their own and the model's order.

        Raises ReadFault, also for a record that is not what was packed.
        """
        try:
            self._fill(self._firsts[layer] + expert)
        except ReadFault as fault:
            raise ReadFault(fault.path, f"expert {expert} of MoE layer {layer}: {fault.what}") from None
        return _parameters(self._memory.tensor, self.weights.parts[layer])

    def _fill(self, flat_id: int) -> None:
        for piece in self.weights.pieces[flat_id]:
            target = self._memory.bytes[piece.begin : piece.begin + piece.nbytes]
            self.storage.fill(Span(piece.shard, piece.offset, piece.nbytes, target, 0))
        self.weights.verify(flat_id, self._memory.bytes)


def _parameters(record: Tensor, parts: Sequence[Part]) -> Parameters:
    found: Parameters = {}
    for part in parts:
        tensor = record[part.begin : part.begin + part.nbytes].clone().view(part.dtype).view(part.shape)
        found.setdefault(part.name, {})[part.field] = in_model_order(tensor, part.order)
    return found


class Conversion(NamedTuple):
    """How the matrices of one layer's experts are brought from the checkpoint's form into another."""

    name: str
    """Of the experts module, in messages."""
    types: Mapping[str, torch.dtype]
    """Of each parameter that is stored in 16 or 32 bits."""
    stored: Mapping[str, ExpertFormat]
    """Of each that is stored in low bits."""
    shapes_OI: Mapping[str, tuple[int, int]]
    """Of the matrices; the parameters beside them are biases."""
    transposed: bool
    """Whether the model, and with it plain weights, has them as [I, O]."""
    format: QuantisingFormat | None
    """To bring them into; None: as they are stored."""

    def format_of(self, name: str) -> ExpertFormat:
        """In which a parameter is held afterwards."""
        if name not in self.shapes_OI:
            return PlainWeights(self.types[name])
        return self.format or self.stored.get(name) or PlainWeights(self.types[name])

    def layout(self) -> RecordLayout:
        """Of a record of the matrices, [O, I] each."""
        return record_layout({name: (self.format_of(name), self.shapes_OI[name]) for name in self.shapes_OI})

    def matrix(self, expert: int, name: str, tensors: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """The fields of a matrix, given as the checkpoint has it. UserError for one that is not finite."""
        if name in self.stored and self.format_of(name) == self.stored[name]:
            return tensors
        weight_OI = self.weight(name, tensors)
        self.check_finite(expert, name, weight_OI)
        return self.format.quantise(weight_OI) if self.format else {"weight": weight_OI}

    def check_finite(self, expert: int, name: str, weight: Tensor) -> None:
        """UserError for weights that hold NaN or infinity."""
        where = f"{self.name}.{name}, expert {expert},"
        check_finite([(where, weight)], "an expert cannot be held in low bits")

    def weight(self, name: str, tensors: Mapping[str, Tensor]) -> Tensor:
        """A matrix, [O, I], given as the checkpoint has it."""
        if name in self.stored:
            return self.stored[name].dequantise(tensors, self.shapes_OI[name], torch.float32)
        return tensors[""].T if self.transposed else tensors[""]


def conversion_of(
    model: nn.Module, layer: MoeLayer, weights: ExpertWeights, format: QuantisingFormat | None
) -> Conversion:
    """The conversion of a layer of a checkpoint."""
    experts: Any = model.get_submodule(layer.experts)
    parts = weights.parts[layer.index]
    names = dict.fromkeys(part.name for part in parts)
    return Conversion(
        name=layer.experts,
        types={part.name: part.dtype for part in parts if not part.field},
        stored=weights.formats[layer.index],
        shapes_OI={name: shape_OI_of(experts, name) for name in names if getattr(experts, name).dim() == 3},
        transposed=experts.transposed,
        format=format,
    )
