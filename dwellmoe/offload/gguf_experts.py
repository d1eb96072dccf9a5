"""The routed experts of a GGUF file, whose bytes are read out of it as they are.

A GGUF holds the matrices of a layer's experts as one tensor each for gate, up and down: one expert is a range
of bytes in each of them. Everything else of the model is its checkpoint's.

Letters: E experts, O and I the output and input width of a matrix.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from gguf import GGMLQuantizationType as Type
from gguf.gguf_reader import ReaderTensor
from torch import nn

from dwellmoe.errors import UserError
from dwellmoe.experts.formats.base import ExpertFormat
from dwellmoe.experts.formats.q4_0 import Q4_0
from dwellmoe.experts.formats.q8_0 import Q8_0
from dwellmoe.experts.weights import shape_OI_of
from dwellmoe.families import MoeLayer, expert_parameters
from dwellmoe.offload.expert_weights import (
    AS_IN_MODEL,
    TRANSPOSED,
    ExpertWeights,
    Part,
    Piece,
    aligned,
)
from dwellmoe.offload.io.gguf_file import GgufPart, all_tensors
from dwellmoe.offload.io.shards import Shards

TENSORS = {
    "gate_up_proj": ("ffn_gate_exps", "ffn_up_exps"),
    "up_proj": ("ffn_up_exps",),
    "down_proj": ("ffn_down_exps",),
}
"""What makes up a parameter of the model: tensors whose rows follow one another in it."""
JOINED = ("ffn_gate_up_exps",)
"""Gate and up of a file that holds them as one."""
BLOCKS: dict[Type, ExpertFormat] = {
    Type.Q8_0: Q8_0(),
    Type.Q4_0: Q4_0(),
}
PLAIN = {
    Type.F32: torch.float32,
    Type.F16: torch.float16,
    Type.BF16: torch.bfloat16,
}
READ = ", ".join(kind.name for kind in (*PLAIN, *BLOCKS))


class _Stored(NamedTuple):
    """A tensor of experts, and which of the files holds it."""

    tensor: ReaderTensor
    shard: int


def locate_gguf_experts(model: nn.Module, layers: Sequence[MoeLayer], files: list[GgufPart]) -> ExpertWeights:
    """Where the experts of `layers` lie in a GGUF. `model` holds their parameters as shapes at least.

    Raises UserError for tensors that are missing, of other shapes than the model's, or of a type that is not
    read, and for experts that a GGUF keeps in another form than the model (GPT-OSS).
    """
    numbers = {part.path: number for number, part in enumerate(files)}
    stored = {tensor.name: _Stored(tensor, numbers[part.path]) for part, tensor in all_tensors(files)}
    parts, pieces, sizes, all_formats = [], [], [], []
    for layer in layers:
        experts: Any = model.get_submodule(layer.experts)
        _check_form(experts, layer, files)
        record = _Record(experts.transposed)
        for name in expert_parameters(model, layer):
            shape_OI = shape_OI_of(experts, name)
            record.add(name, _found(stored, layer, name, shape_OI, files), shape_OI)
        parts.append(tuple(record.parts))
        sizes.append(record.nbytes)
        pieces += [record.pieces_of(expert) for expert in range(layer.num_experts)]
        all_formats.append(record.formats)
    shards = Shards(tuple(part.path for part in files), {})
    return ExpertWeights(shards, tuple(parts), tuple(pieces), tuple(sizes), tuple(all_formats))


def _check_form(experts: Any, layer: MoeLayer, files: list[GgufPart]) -> None:
    if experts.has_bias or not getattr(experts, "is_concatenated", True):
        raise UserError(
            f"{files[0].path}: '{layer.experts}' ({type(experts).__name__}) has biases or interleaved "
            "matrices, which a GGUF keeps in another form: run the model as it was published"
        )


def _found(
    stored: Mapping[str, _Stored],
    layer: MoeLayer,
    name: str,
    shape_OI: tuple[int, int],
    files: list[GgufPart],
) -> list[_Stored]:
    """The tensors of a parameter. UserError where one is missing or does not fit."""
    prefix = f"blk.{layer.layer_id}."
    names = TENSORS[name]
    if len(names) == 2 and f"{prefix}{JOINED[0]}.weight" in stored:
        names = JOINED
    found = []
    for each in (f"{prefix}{each}.weight" for each in names):
        if each not in stored:
            raise UserError(f"{files[0].path}: has no tensor {each} for '{layer.experts}.{name}'")
        found.append(stored[each])
        expected = [layer.num_experts, shape_OI[0] // len(names), shape_OI[1]]
        if (shape := found[-1].tensor.shape.tolist()[::-1]) != expected:
            raise UserError(f"{files[0].path}: {each} has shape {shape}, the model's experts have {expected}")
    types = {each.tensor.tensor_type for each in found}
    if len(types) > 1 or not types <= {*PLAIN, *BLOCKS}:
        kinds = " and ".join(sorted(kind.name for kind in types))
        raise UserError(
            f"{files[0].path}: {found[0].tensor.name} is {kinds}; experts are read in one of {READ}: give "
            "such a file, or leave out --gguf and pack the checkpoint with --format"
        )
    return found


class _Record:
    """The record of an expert of one layer, put together parameter after parameter."""

    def __init__(self, transposed: bool) -> None:
        self.parts: list[Part] = []
        self.formats: dict[str, ExpertFormat] = {}
        self._transposed = transposed
        self._tensors: list[list[_Stored]] = []

    @property
    def nbytes(self) -> int:
        return self.parts[-1].begin + self.parts[-1].nbytes if self.parts else 0

    def add(self, name: str, tensors: list[_Stored], shape_OI: tuple[int, int]) -> None:
        kind = tensors[0].tensor.tensor_type
        if kind in BLOCKS:
            self.formats[name] = BLOCKS[kind]
            (field,) = BLOCKS[kind].fields(shape_OI)
            part = Part(name, field.shape, field.dtype, self.nbytes, AS_IN_MODEL, field.name)
        else:
            shape = shape_OI[::-1] if self._transposed else shape_OI
            order = TRANSPOSED if self._transposed else AS_IN_MODEL
            part = Part(name, shape, PLAIN[kind], aligned(self.nbytes, PLAIN[kind]), order)
        self.parts.append(part)
        self._tensors.append(tensors)

    def pieces_of(self, expert: int) -> tuple[Piece, ...]:
        """Where the bytes of one expert lie."""
        pieces = []
        for part, tensors in zip(self.parts, self._tensors, strict=True):
            nbytes = part.nbytes // len(tensors)
            for number, (tensor, shard) in enumerate(tensors):
                offset = int(tensor.data_offset) + expert * nbytes
                pieces.append(Piece(shard, offset, nbytes, part.begin + number * nbytes))
        return tuple(pieces)
