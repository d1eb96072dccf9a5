"""Where the weights of each routed expert lie in a checkpoint: the pieces of one record an expert.

A record holds an expert's parameters one after the other, each as the experts module of transformers holds
its slice [e] (`gate_up_proj`, `down_proj`, biases), in the checkpoint's own order: where a checkpoint keeps
an expert together, its record is one read. transformers' table of weight conversions names the tensors that
make up a parameter: one tensor an expert, gate and up apart or joined (DeepSeek's original layout, Qwen,
OLMoE, Mixtral), or one tensor for all experts (GPT-OSS).

Letters: L layers, E experts.
"""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from torch import nn
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import (
    Concatenate,
    ErnieFuseAndSplitTextVisionExperts,
    Interleave,
    MergeModulelist,
    Transpose,
    WeightConverter,
    WeightRenaming,
    dot_natural_key,
    rename_source_key,
)

from dwellmoe.errors import UserError
from dwellmoe.experts.formats.base import ExpertFormat
from dwellmoe.experts.formats.fp8 import BlockFp8
from dwellmoe.experts.formats.mxfp4 import Mxfp4
from dwellmoe.experts.weights import shape_OI_of
from dwellmoe.families import MoeLayer, expert_parameters
from dwellmoe.offload.io.number_types import DTYPES
from dwellmoe.offload.io.packed_index import checksum_of, damage_at
from dwellmoe.offload.io.shards import Shards, StoredTensor
from dwellmoe.offload.io.storage import ReadFault
from dwellmoe.offload.published_low_bits import FORMS, FP8_TYPE, SCALE_TYPES, SCALES, LowBitForm

CONVERT = f"though the configuration names no quantisation: give the experts in {FORMS}"
AS_IN_MODEL, INTERLEAVED, TRANSPOSED = "as in the model", "interleaved", "transposed"
"""Interleaved: rows of gate and up in turns, where the model has all of gate and then all of up."""


class Piece(NamedTuple):
    """Consecutive bytes of a file that are a part of a record."""

    shard: int
    offset: int
    nbytes: int
    begin: int
    """First byte in the record."""


class Part(NamedTuple):
    """One parameter of an expert in its record; of one in low bits, one of the tensors that hold it."""

    name: str
    shape: tuple[int, ...]
    dtype: Any
    """Its torch.dtype in the checkpoint."""
    begin: int
    """First byte in the record."""
    order: str = AS_IN_MODEL
    """Of its numbers in the checkpoint."""
    field: str = ""
    """Which tensor of its `ExpertFormat` it is, of a parameter in low bits."""

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


class ExpertWeights(NamedTuple):
    """The records of every routed expert of a model."""

    shards: Shards
    parts: tuple[tuple[Part, ...], ...]
    """[L]: the parameters of a record of this layer."""
    pieces: tuple[tuple[Piece, ...], ...]
    """[L * E], by flat id: where the bytes of an expert's record lie."""
    record_bytes: tuple[int, ...]
    """[L]"""
    formats: tuple[Mapping[str, ExpertFormat], ...]
    """[L]: the parameters that the checkpoint holds in low bits."""
    checksums: tuple[str, ...] = ()
    """[L * E], by flat id: of the records of a packed model."""

    def verify(self, flat_id: int, record: np.ndarray) -> None:
        """Raises ReadFault for bytes of a record (uint8) that are not what was packed; nothing is known of a
        checkpoint without checksums.
        """
        if not self.checksums:
            return
        (piece,) = self.pieces[flat_id]
        if checksum_of([record[: piece.nbytes]]) != self.checksums[flat_id]:
            raise ReadFault(self.shards.paths[piece.shard], damage_at(piece.offset, piece.nbytes))


class _Source(NamedTuple):
    """The tensors of a parameter: for each original name one tensor an expert, or one fused tensor."""

    tensors: tuple[tuple[StoredTensor, ...], ...]
    fused: bool
    order: str = AS_IN_MODEL
    scales: tuple[tuple[StoredTensor, ...], ...] = ()
    """Of FP8 weights: those of each of the tensors."""


class _Place(NamedTuple):
    """Where one tensor of a parameter lies, and what it is in an expert's record."""

    source: _Source
    shape: tuple[int, ...]
    dtype: Any


Places = dict[tuple[str, str], _Place]
"""(parameter, field of its format) -> place; the field of 16 and 32 bits is ''."""


def locate_experts(
    model: nn.Module, layers: Sequence[MoeLayer], shards: Shards, form: LowBitForm | None = None
) -> ExpertWeights:
    """Where the experts of `layers` lie. `model` holds their parameters as shapes (meta device) at least.

    form  in which a checkpoint of low bits is published; without it, experts in low bits are refused

    Raises UserError for a tensor that is missing or has another shape than the model's, and for a layout that
    would have to be computed.
    """
    if form and form.packed:
        from dwellmoe.offload.packed import locate_packed  # which is built on what this module defines

        return locate_packed(model, layers, shards, form.packed)
    sources = _sources(model, shards)
    parts, pieces, sizes, all_formats = [], [], [], []
    for layer in layers:
        experts: Any = model.get_submodule(layer.experts)
        unused = getattr(experts, "zero_expert_num", 0)
        places: Places = {}
        formats: dict[str, ExpertFormat] = {}
        for name, weight in expert_parameters(model, layer).items():
            full, shape = f"{layer.experts}.{name}", tuple(weight.shape)
            matrix = shape_OI_of(experts, name) if len(shape) == 3 else shape[1:]
            if form and (low := _low_bits(sources, full, shape[0], matrix, form)):
                formats[name], tensors = low
                places |= {(name, field): place for field, place in tensors.items()}
            else:
                source = _checked(sources, full, shape, unused)
                places[name, ""] = _Place(source, shape[1:], DTYPES[source.tensors[0][0].dtype])
        layout = _layout(places)
        parts.append(layout)
        sizes.append(layout[-1].begin + layout[-1].nbytes)
        pieces += [_pieces(layout, places, expert) for expert in range(layer.num_experts)]
        all_formats.append(formats)
    return ExpertWeights(shards, tuple(parts), tuple(pieces), tuple(sizes), tuple(all_formats))


def _low_bits(
    sources: dict[str, _Source], name: str, experts: int, shape_OI: tuple[int, ...], form: LowBitForm
) -> tuple[ExpertFormat, dict[str, _Place]] | None:
    """The format of a parameter that is held in low bits, and where its tensors lie; None for another one."""
    if f"{name}_blocks" in sources:
        blocks, scales = sources[f"{name}_blocks"], sources.get(f"{name}_scales")
        if scales is None:
            raise UserError(f"'{name}' has MXFP4 blocks without their scales ('{name}_scales')")
        return _placed(name, Mxfp4(), {"blocks": blocks, "scales": scales}, experts, shape_OI)
    source = sources.get(name)
    if source is None or source.tensors[0][0].dtype != FP8_TYPE:
        return None
    if not source.scales or any(len(each) != experts for each in source.scales):
        raise UserError(f"'{name}' is stored as {FP8_TYPE} without its scales (weight{SCALES})")
    if (kind := source.scales[0][0].dtype) not in SCALE_TYPES:
        raise UserError(f"'{name}' has scales of type {kind}: expected {', '.join(SCALE_TYPES)}")
    format = BlockFp8(form.block, parts=len(source.tensors), scale_type=SCALE_TYPES[kind])
    scales = source._replace(tensors=source.scales)
    return _placed(name, format, {"scales": scales, "weight": source}, experts, shape_OI)


def _placed(
    name: str, format: Any, sources: dict[str, _Source], experts: int, shape_OI: tuple[int, ...]
) -> tuple[ExpertFormat, dict[str, _Place]]:
    """The fields of a format with their tensors. UserError for tensors of another size."""
    places = {}
    for field in format.fields(shape_OI):
        source, place = sources[field.name], _Place(sources[field.name], field.shape, field.dtype)
        found = sum(each.nbytes for tensors in source.tensors for each in tensors)
        expected = experts * math.prod(field.shape) * field.dtype.itemsize
        if found != expected:
            raise UserError(
                f"'{name}': its {field.name} take {found:,} bytes in the checkpoint, not {expected:,}"
            )
        places[field.name] = place
    return format, places


def _sources(model: Any, shards: Shards) -> dict[str, _Source]:
    """Parameter of the model -> its tensors, as transformers would load them."""
    converters = _converters(model)
    by_pattern = {pattern: entry for entry in converters for pattern in entry.source_patterns}
    shapes = model.state_dict()
    collected: dict[str, Tensors] = {}
    scales: dict[str, Tensors] = {}
    for key, name, pattern in names_in_model(model, shards.tensors):
        kind = scales if key.endswith(SCALES) else collected
        kind.setdefault(name, {}).setdefault(pattern, []).append(shards.tensors[key])
    return {
        name: _source(name, lists, scales.get(name, {}), by_pattern, shapes)
        for name, lists in collected.items()
        if ".experts." in name
    }


def names_in_model(model: Any, keys: Iterable[str]) -> Iterator[tuple[str, str, str | None]]:
    """`(key, name, pattern)`: each tensor of a checkpoint, numbers in their order, the parameter of the model
    that it is (a part of), and the pattern of its converter; None for a tensor that is the whole parameter.
    """
    renamings = [entry for entry in get_model_conversion_mapping(model) if isinstance(entry, WeightRenaming)]
    converters, shapes, prefix = _converters(model), model.state_dict(), model.base_model_prefix
    for key in sorted(keys, key=dot_natural_key):
        weight = key.removesuffix(SCALES)
        name, pattern = rename_source_key(weight, renamings, converters, prefix, shapes)
        yield (key, weight, None) if name not in shapes and weight in shapes else (key, name, pattern)


def modules_of_experts(model: Any, keys: Iterable[str]) -> dict[str, list[str]]:
    """Fused parameter -> the modules that a checkpoint has in its place, one an expert: of `gate_up_proj` all
    of gate before all of up. Parameters that the checkpoint stores as one tensor are left out.
    """
    lists: dict[tuple[str, str | None], list[str]] = {}
    for key, name, pattern in names_in_model(model, keys):
        lists.setdefault((name, pattern), []).append(key.removesuffix(".weight"))
    found: dict[str, list[str]] = {}
    for pattern in (pattern for entry in _converters(model) for pattern in entry.source_patterns):
        for (name, own), modules in lists.items():
            if own == pattern and len(modules) > 1:
                found.setdefault(name, []).extend(modules)
    return found


def _converters(model: Any) -> list[WeightConverter]:
    return [entry for entry in get_model_conversion_mapping(model) if isinstance(entry, WeightConverter)]


Tensors = dict[str | None, list[StoredTensor]]
"""Pattern of the original name -> the tensors of such names, one an expert or one for all."""


def _source(
    name: str, lists: Tensors, scales: Tensors, by_pattern: dict[str, Any], shapes: Mapping[str, Any]
) -> _Source:
    """`shapes`: what the model has by name."""
    shape = tuple(shapes[name].shape) if name in shapes else ()
    pattern = next(iter(lists))
    if pattern is None:
        return _Source((tuple(lists[None]),), fused=True)
    converter = by_pattern[pattern]
    if order := _order_of(converter, lists[pattern][0].shape, shape):
        return _Source((tuple(lists[pattern]),), fused=True, order=order)
    kinds = [(type(step), getattr(step, "dim", None)) for step in converter.operations]
    fused, one_each = kinds == [(Concatenate, 1)], [(MergeModulelist, 0)]
    text_first = [kind for kind, _ in kinds] == [ErnieFuseAndSplitTextVisionExperts]
    if not (fused or text_first or kinds in (one_each, [*one_each, (Concatenate, 1)])):
        steps = ", ".join(kind.__name__ for kind, _ in kinds)
        raise UserError(
            f"the checkpoint stores '{name}' in another form than the model computes with ({steps} in "
            "transformers), so that its experts cannot be read one by one: run it without --expert_budget"
        )
    tensors, factors = (
        tuple(tuple(kind.get(each, ())) for each in converter.source_patterns) for kind in (lists, scales)
    )
    if text_first:  # the other half of the list are experts of images
        tensors = tuple(each[: -(-len(each) // len(converter.target_patterns))] for each in tensors)
    return _Source(tensors, fused=fused, scales=factors if scales else ())


def _order_of(converter: Any, stored: tuple[int, ...], shape: tuple[int, ...]) -> str:
    """The order of a fused tensor that one step of loading puts into the model's; empty for other steps."""
    if len(converter.operations) != 1:
        return ""
    step = converter.operations[0]
    if isinstance(step, Interleave) and step.dim == 1 and not step.inverse:
        return INTERLEAVED
    if isinstance(step, Transpose) and {step.dim0, step.dim1} == {1, 2}:
        return AS_IN_MODEL if step.check_dims and stored == shape else TRANSPOSED
    return ""


def _checked(sources: dict[str, _Source], name: str, shape: tuple[int, ...], unused: int) -> _Source:
    """`unused`: tensors of experts that compute nothing, which a checkpoint may have beyond the others."""
    source = sources.get(name)
    if source is None:
        others = [each.removeprefix(name) for each in sources if each.startswith(f"{name}_")]
        instead = f", but '{others[0]}' of it, {CONVERT}" if others else ""
        raise UserError(f"the checkpoint has no weights for '{name}'{instead}")
    for tensors in source.tensors:
        if not source.fused and not shape[0] <= len(tensors) <= shape[0] + unused:
            raise UserError(f"'{name}': {len(tensors)} of {shape[0]} experts are in the checkpoint")
        if unknown := [tensor.dtype for tensor in tensors if tensor.dtype not in DTYPES]:
            raise UserError(f"'{name}' is stored as {unknown[0]}, {CONVERT}")
        if any((tensor.shape, tensor.dtype) != (tensors[0].shape, tensors[0].dtype) for tensor in tensors):
            raise UserError(f"'{name}': experts differ in shape or type")
    _check_shape(name, source, shape)
    return source


def _check_shape(name: str, source: _Source, shape: tuple[int, ...]) -> None:
    firsts = [tensors[0] for tensors in source.tensors]
    if source.fused and len(firsts) == 1:
        found = firsts[0].shape
        if source.order == TRANSPOSED:
            found = (*found[:-2], found[-1], found[-2])
    elif source.fused:
        found = (shape[0], sum(tensor.shape[1] for tensor in firsts), *firsts[0].shape[2:])
    else:
        rows = sum(tensor.shape[0] for tensor in firsts)
        found = (shape[0], rows, *firsts[0].shape[1:])
    if found != shape or len({tensor.dtype for tensor in firsts}) > 1:
        raise UserError(f"'{name}' has shape {list(found)} in the checkpoint, {list(shape)} in the model")


def _layout(places: Places) -> tuple[Part, ...]:
    """The parts of a record, in the order of the checkpoint."""
    parts: list[Part] = []
    end = 0
    for (name, field), place in sorted(places.items(), key=lambda item: item[1].source.tensors[0][0][:2]):
        begin = aligned(end, place.dtype)
        parts.append(Part(name, place.shape, place.dtype, begin, place.source.order, field))
        end = begin + parts[-1].nbytes
    return tuple(parts)


def aligned(begin: int, dtype: Any) -> int:
    """The first byte from `begin` on at which numbers of a type may lie."""
    return -(-begin // dtype.itemsize) * dtype.itemsize


def _pieces(layout: tuple[Part, ...], places: Places, expert: int) -> tuple[Piece, ...]:
    """The record of one expert; pieces that follow one another in the file are one."""
    pieces: list[Piece] = []
    for part in layout:
        begin = part.begin
        for shard, offset, nbytes in _ranges(places[part.name, part.field].source, expert, part.nbytes):
            last = pieces[-1] if pieces else None
            end = (last.shard, last.offset + last.nbytes, last.begin + last.nbytes) if last else None
            if last and end == (shard, offset, begin):
                pieces[-1] = last._replace(nbytes=last.nbytes + nbytes)
            else:
                pieces.append(Piece(shard, offset, nbytes, begin))
            begin += nbytes
    return tuple(pieces)


def _ranges(source: _Source, expert: int, nbytes: int) -> Iterator[tuple[int, int, int]]:
    """(shard, offset, bytes) of the tensors that make up one parameter of one expert."""
    for first, *others in source.tensors:
        if source.fused:
            share = nbytes // len(source.tensors)
            yield first.shard, first.offset + expert * share, share
        else:
            tensor = (first, *others)[expert]
            yield tensor.shard, tensor.offset, tensor.nbytes
