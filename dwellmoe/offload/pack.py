"""Packed experts: writes the experts of a checkpoint to one file, a page-aligned record each, and finds them
in it.

    dwellmoe pack MODEL FOLDER

This helps where a checkpoint scatters an expert over several tensors or shards: such an expert takes several
reads, a packed one takes one. All other weights are still read from the checkpoint.
"""

import json
import os
import shutil
from pathlib import Path

from tqdm import tqdm

from dwellmoe.errors import UserError
from dwellmoe.files import replacing
from dwellmoe.folder_lock import only_writer
from dwellmoe.offload.expert_weights import ExpertWeights, Piece, locate_experts
from dwellmoe.offload.io.fingerprint import fingerprint
from dwellmoe.offload.io.memory import HostMemory, pages
from dwellmoe.offload.io.shards import Shards, StoredTensor, find_shards
from dwellmoe.offload.io.storage import Span, Storage
from dwellmoe.offload.skeleton import load_shapes

RECORDS, INDEX, VERSION = "experts.bin", "experts.json", 2
AGAIN = "pack the checkpoint again"


def pack(model_name: str, folder: Path) -> None:
    """Writes FOLDER/experts.bin and its index; both appear whole or not at all. Raises UserError."""
    model, layers = load_shapes(model_name)
    weights = locate_experts(model, layers, find_shards(model_name))
    with only_writer(folder):
        _make_room(folder, len(weights.pieces) * _stride(weights))
        storage = Storage(weights.shards.paths)
        try:
            _write_records(weights, storage, folder)
        finally:
            storage.close()
        with replacing(folder / INDEX) as file:
            file.write(json.dumps({"version": VERSION, "experts": _fingerprint(weights)}).encode())


def _stride(weights: ExpertWeights) -> int:
    """Bytes from one record to the next."""
    return pages(max(weights.record_bytes))


def _make_room(folder: Path, nbytes: int) -> None:
    """Removes what a killed process left; UserError where the records would not fit."""
    for left in folder.glob(f".{RECORDS}.*.part"):
        left.unlink()
    if (free := shutil.disk_usage(folder).free) < nbytes:
        raise UserError(f"'{folder}': the experts take {nbytes:,} bytes, and {free:,} are free")


def _write_records(weights: ExpertWeights, storage: Storage, folder: Path) -> None:
    memory = HostMemory(_stride(weights)).bytes
    with replacing(folder / RECORDS) as file:
        for pieces in tqdm(weights.pieces, desc="experts", unit="expert"):
            memory[:] = 0
            for piece in pieces:
                target = memory[piece.begin : piece.begin + piece.nbytes]
                storage.fill(Span(piece.shard, piece.offset, piece.nbytes, target, 0))
            file.write(memory.data)
        file.flush()
        os.fsync(file.fileno())
        (folder / INDEX).unlink(missing_ok=True)  # of an earlier pack, which is gone from here on


def find_packed(weights: ExpertWeights, folder: Path) -> ExpertWeights:
    """The experts of a checkpoint in the file that `pack` wrote. Raises UserError for a folder without one,
    and for a file that holds other experts than the checkpoint or is damaged.
    """
    packed, wanted = _read_index(folder), _fingerprint(weights)
    if packed != wanted:
        raise UserError(
            f"{folder}: packed from another checkpoint: it holds experts {packed}, "
            f"{weights.shards.paths[0].parent} holds {wanted}: {AGAIN}"
        )
    path, stride = folder / RECORDS, _stride(weights)
    if not path.is_file() or path.stat().st_size != stride * len(weights.pieces):
        raise UserError(f"{path}: missing or truncated: {AGAIN}")
    moved = [
        tuple(piece._replace(shard=0, offset=flat_id * stride + piece.begin) for piece in pieces)
        for flat_id, pieces in enumerate(weights.pieces)
    ]
    found = weights._replace(shards=Shards((path,), {}), pieces=tuple(moved))
    if (holds := _fingerprint(found)) != packed:
        raise UserError(f"{path}: changed since it was packed: it holds {holds} instead of {packed}: {AGAIN}")
    return found._replace(pieces=tuple(map(_joined, moved)))


def _joined(pieces: tuple[Piece, ...]) -> tuple[Piece]:
    """The pieces of a packed record, which follow one another, as one."""
    return (pieces[0]._replace(nbytes=sum(piece.nbytes for piece in pieces)),)


def _fingerprint(weights: ExpertWeights) -> str:
    """Of the experts' bytes alone: a pack serves every checkpoint with the same experts."""
    pieces = {
        f"{flat_id}.{piece.begin}": StoredTensor(piece.shard, piece.offset, piece.nbytes, (), "U8")
        for flat_id, pieces in enumerate(weights.pieces)
        for piece in pieces
    }
    return fingerprint(weights.shards._replace(tensors=pieces))


def _read_index(folder: Path) -> str:
    """The fingerprint of the experts that were packed."""
    try:
        index = json.loads((folder / INDEX).read_text(encoding="utf-8"))
        version = index["version"]
        experts = str(index["experts"]) if version == VERSION else ""
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        raise UserError(f"{folder}: no packed experts ({INDEX} is missing or broken)") from None
    if version != VERSION:
        raise UserError(
            f"{folder}: packed by another version of dwellmoe ({version}, not {VERSION}): {AGAIN}"
        )
    return experts
