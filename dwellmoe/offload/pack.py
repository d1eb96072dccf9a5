"""Packed experts: writes the experts of a checkpoint to one file, a page-aligned record each, and finds them
in it.

    dwellmoe pack MODEL FOLDER

This helps where a checkpoint scatters an expert over several tensors or shards: such an expert takes several
reads, a packed one takes one. All other weights are still read from the checkpoint.
"""

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from tqdm import tqdm

from dwellmoe.errors import UserError
from dwellmoe.families import MoeLayer, expert_parameters
from dwellmoe.files import replacing
from dwellmoe.folder_lock import only_writer
from dwellmoe.offload.expert_weights import ExpertWeights, Part, Piece, locate_experts
from dwellmoe.offload.io.memory import HostMemory, pages
from dwellmoe.offload.io.shards import Shards, find_shards
from dwellmoe.offload.io.storage import Span, Storage
from dwellmoe.offload.skeleton import load_shapes

RECORDS, INDEX, VERSION = "experts.bin", "experts.json", 1


def pack(model_name: str, folder: Path) -> None:
    """Writes FOLDER/experts.bin and its index; both appear whole or not at all. Raises UserError."""
    model, layers = load_shapes(model_name)
    weights = locate_experts(model, layers, find_shards(model_name))
    with only_writer(folder):
        storage = Storage(weights.shards.paths)
        try:
            _write_records(weights, storage, folder / RECORDS)
        finally:
            storage.close()
        with replacing(folder / INDEX) as file:
            file.write(json.dumps(_index(weights)).encode())


def _write_records(weights: ExpertWeights, storage: Storage, path: Path) -> None:
    stride = pages(max(weights.record_bytes))
    memory = HostMemory(stride).bytes
    with replacing(path) as file:
        for pieces in tqdm(weights.pieces, desc="experts", unit="expert"):
            memory[:] = 0
            for piece in pieces:
                target = memory[piece.begin : piece.begin + piece.nbytes]
                storage.fill(Span(piece.shard, piece.offset, piece.nbytes, target, 0))
            file.write(memory.data)
        file.flush()
        os.fsync(file.fileno())


def _index(weights: ExpertWeights) -> dict[str, Any]:
    layers = [
        [[part.name, list(part.shape), str(part.dtype).removeprefix("torch."), part.begin] for part in parts]
        for parts in weights.parts
    ]
    return {
        "version": VERSION,
        "source": _source(weights.shards),
        "stride": pages(max(weights.record_bytes)),
        "record_bytes": list(weights.record_bytes),
        "layers": layers,
    }


def _source(shards: Shards) -> list[list[Any]]:
    """Names and sizes of the shards, by which a pack is recognised as one of this checkpoint."""
    return sorted([path.name, path.stat().st_size] for path in shards.paths)


def locate_packed(
    model: nn.Module, layers: Sequence[MoeLayer], shards: Shards, folder: Path
) -> ExpertWeights:
    """Where the experts lie in the packed file of a checkpoint. Raises UserError for a file that was not
    written by `pack`, belongs to another checkpoint, or is incomplete.
    """
    try:
        index = json.loads((folder / INDEX).read_text())
        stride, sizes = int(index["stride"]), tuple(int(size) for size in index["record_bytes"])
        parts = tuple(tuple(_part(*entry) for entry in layer) for layer in index["layers"])
        version, source = index["version"], index["source"]
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise UserError(f"{folder}: no packed experts ({INDEX} is missing or broken)") from None
    if version != VERSION or source != _source(shards):
        raise UserError(f"{folder}: packed from another checkpoint: pack this one again")
    _check_parts(model, layers, parts, folder)
    experts = layers[0].num_experts
    pieces = tuple(
        (Piece(shard=0, offset=flat_id * stride, nbytes=sizes[flat_id // experts], begin=0),)
        for flat_id in range(experts * len(layers))
    )
    path = folder / RECORDS
    if not path.is_file() or path.stat().st_size != stride * len(pieces):
        raise UserError(f"{path}: missing or truncated")
    return ExpertWeights(Shards((path,), {}), parts, pieces, sizes)


def _part(name: str, shape: list[int], dtype: str, begin: int) -> Part:
    return Part(name, tuple(shape), getattr(torch, dtype), begin)


def _check_parts(
    model: nn.Module, layers: Sequence[MoeLayer], parts: tuple[tuple[Part, ...], ...], folder: Path
) -> None:
    for layer, found in zip(layers, parts, strict=True):
        wanted = {name: tuple(weight.shape[1:]) for name, weight in expert_parameters(model, layer).items()}
        if {part.name: part.shape for part in found} != wanted:
            raise UserError(f"{folder}: packed experts of MoE layer {layer.index} do not fit the model")
