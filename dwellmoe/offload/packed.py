"""Finds the experts of a packed model."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from torch import nn

from dwellmoe.errors import UserError
from dwellmoe.experts.formats import format_of
from dwellmoe.experts.formats.base import ExpertFormat
from dwellmoe.experts.formats.stored import PlainWeights
from dwellmoe.experts.low_bits import RecordLayout, record_layout
from dwellmoe.experts.weights import shape_OI_of
from dwellmoe.families import MoeLayer, expert_parameters
from dwellmoe.offload.expert_weights import ExpertWeights, Part, Piece
from dwellmoe.offload.io.fingerprint import fingerprint
from dwellmoe.offload.io.memory import pages
from dwellmoe.offload.io.packed_check import check_own_experts
from dwellmoe.offload.io.packed_index import AGAIN, INDEX, PackedIndex, PackedLayer, read_index
from dwellmoe.offload.io.shards import Shards, StoredTensor, find_shards

RECORDS = "records"


def records_name(layer: MoeLayer) -> str:
    """The tensor that holds the records of a layer's experts."""
    return f"{layer.experts}.{RECORDS}"


def packed_layout(model: nn.Module, layer: MoeLayer, formats: Mapping[str, ExpertFormat]) -> RecordLayout:
    """The record of an expert whose parameters are in these formats: plain weights and biases as the model
    slices them, low bits as [O, I].
    """
    experts: Any = model.get_submodule(layer.experts)
    shapes = {name: tuple(weight.shape[1:]) for name, weight in expert_parameters(model, layer).items()}
    parameters: dict[str, Any] = {}
    for name, format in formats.items():
        is_plain = isinstance(format, PlainWeights)
        parameters[name] = format, shapes[name] if is_plain else shape_OI_of(experts, name)
    return record_layout(parameters)


def locate_packed(
    model: nn.Module, layers: Sequence[MoeLayer], shards: Shards, index: PackedIndex
) -> ExpertWeights:
    """Where the records of `layers` lie. Raises UserError for a packed model that is another one, and for
    records that are not what was packed.
    """
    folder = shards.paths[0].parent
    if len(index.layers) != len(layers):
        raise _another_model(folder, f"{len(index.layers)} MoE layers, the model {len(layers)}")
    found = [
        _located(folder, model, layer, shards, packed)
        for layer, packed in zip(layers, index.layers, strict=True)
    ]
    check_own_experts(shards, index)
    return ExpertWeights(
        shards,
        tuple(each.parts for each in found),
        tuple(piece for each in found for piece in each.pieces),
        tuple(packed.record_bytes for packed in index.layers),
        tuple(each.formats for each in found),
        tuple(each for packed in index.layers for each in packed.checksums),
    )


class _Located(NamedTuple):
    """The records of a layer."""

    parts: tuple[Part, ...]
    pieces: list[tuple[Piece]]
    formats: dict[str, ExpertFormat]


def _located(
    folder: Path, model: nn.Module, layer: MoeLayer, shards: Shards, packed: PackedLayer
) -> _Located:
    formats = {name: format_of(text) for name, text in packed.formats.items()}
    if {*formats} != {*expert_parameters(model, layer)} or packed.records != records_name(layer):
        raise _another_model(folder, f"'{packed.records}', the model '{records_name(layer)}'")
    layout = packed_layout(model, layer, formats)
    tensor = shards.tensors.get(packed.records)
    stride, experts = pages(layout.nbytes), layer.num_experts
    expected = ((experts, stride), "U8", layout.nbytes, experts)
    given = tensor and (tensor.shape, tensor.dtype, packed.record_bytes, len(packed.checksums))
    if tensor is None or given != expected:
        raise _another_model(folder, f"'{packed.records}' as {given}, the model would have {expected}")
    pieces = [
        (Piece(tensor.shard, tensor.offset + expert * stride, layout.nbytes, 0),) for expert in range(experts)
    ]
    low_bits = {name: format for name, format in formats.items() if not isinstance(format, PlainWeights)}
    return _Located(_parts(layout), pieces, low_bits)


def _parts(layout: RecordLayout) -> tuple[Part, ...]:
    found = []
    for name, matrix in layout.matrices.items():
        for field, begin in matrix.fields:
            label = "" if isinstance(matrix.format, PlainWeights) else field.name
            found.append(Part(name, field.shape, field.dtype, begin, field=label))
    return tuple(found)


def _another_model(folder: Path, difference: str) -> UserError:
    return UserError(f"'{folder}': {INDEX} is of another model: it has {difference}: {AGAIN}")


def find_packed(
    model: nn.Module, layers: Sequence[MoeLayer], weights: ExpertWeights, folder: str
) -> ExpertWeights:
    """The experts of a checkpoint in a packed model of the same experts. Raises UserError for a folder that
    holds none, one of other experts, and a damaged one.
    """
    index, wanted = read_index(folder), experts_fingerprint(weights)
    if index.source_experts != wanted:
        raise UserError(
            f"'{folder}': packed from another checkpoint: from experts {index.source_experts}, those of "
            f"'{weights.shards.paths[0].parent}' are {wanted}: {AGAIN}"
        )
    return locate_packed(model, layers, find_shards(folder), index)


def experts_fingerprint(weights: ExpertWeights) -> str:
    """Of the experts' bytes alone: a packed model serves every checkpoint with the same experts."""
    pieces = {
        f"{flat_id}.{piece.begin}": StoredTensor(piece.shard, piece.offset, piece.nbytes, (), "U8")
        for flat_id, pieces in enumerate(weights.pieces)
        for piece in pieces
    }
    return fingerprint(weights.shards._replace(tensors=pieces))
