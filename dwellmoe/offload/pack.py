"""Packs a checkpoint: writes a model whose experts are in a format of choice, one record an expert.

    dwellmoe pack MODEL OUT --format int4:group=32

OUT is an ordinary folder of safetensors files: the first holds everything but the routed experts as the
checkpoint has it, each of the others the records of one MoE layer, in whole pages, so that an expert is one
direct read. Experts are converted one after the other by several threads. Which ones are done, with their
checksums, is noted in a file that goes when the model is whole: the same command goes on from there, to the
same bytes. The configuration is written last.
"""

import errno
import itertools
import json
import os
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
from tqdm import tqdm

from dwellmoe.errors import UserError
from dwellmoe.experts.formats import AS_STORED, text_of
from dwellmoe.files import replacing, writing
from dwellmoe.folder_lock import LOCK_NAME, only_writer
from dwellmoe.log import warn_once
from dwellmoe.offload.io.fingerprint import checkpoint_fingerprint, fingerprint
from dwellmoe.offload.io.packed_check import own_experts
from dwellmoe.offload.io.packed_index import (
    CONFIG,
    INDEX,
    PackedIndex,
    PackedLayer,
    checksum_of,
    packed_config,
    packed_index,
)
from dwellmoe.offload.io.shards import (
    PACKED_INDEX_NAME,
    PACKING,
    SAFE_WEIGHTS_INDEX_NAME,
    WEIGHTS,
    Shards,
    StoredTensor,
    chunks_of,
    files_beside_weights,
    read_shards,
)
from dwellmoe.offload.pack_plan import PackPlan, plan_pack
from dwellmoe.offload.pack_records import Journal, write_records
from dwellmoe.offload.packed import experts_fingerprint, records_name

GO_ON = "the same command goes on from there"


class Packed(NamedTuple):
    """What a packed model is."""

    format: str
    layers: int
    experts: int
    """In all layers together."""
    bits_a_weight: float
    """Of the experts, scales included."""
    experts_bytes: int
    total_bytes: int
    """Of all weights."""
    source_bytes: int
    """Of all weights of the checkpoint."""


def pack(
    model_name: str,
    folder: Path,
    format: str = AS_STORED,
    workers: int | None = None,
    gguf: str | None = None,
) -> Packed:
    """Packs a checkpoint into a folder, or goes on with what an interrupted run left there.

    format   `int4:group=32`, `int8`, `nf4`, `mxfp4`, or `as_stored`: as the checkpoint has its experts
    workers  threads; None: one for each processor
    gguf     GGUF file of the same model, out of which the experts are packed as they are

    Raises UserError for a checkpoint or GGUF that cannot be packed, a folder that holds something else, and
    a disk that is full.
    """
    plan = plan_pack(model_name, format, gguf)
    with only_writer(folder):
        if not _is_done(plan, folder):
            _check_room(plan, folder)
            _write(plan, folder, workers or len(os.sched_getaffinity(0)))
    return _summary(plan)


def _is_done(plan: PackPlan, folder: Path) -> bool:
    """Whether the folder holds this very model already. Raises UserError for anything else that is in it,
    other than what an interrupted run of the same command left.
    """
    if (folder / PACKING).exists():
        if Journal(folder / PACKING).identity != plan.identity:
            raise UserError(
                f"'{folder}' holds the beginning of another packed model (of another checkpoint, format or "
                "version): remove it, or choose another folder"
            )
        return False
    if all(path.name == LOCK_NAME or path in _torn(folder) for path in folder.iterdir()):
        return False
    found = packed_index(str(folder))
    same_base = found and checkpoint_fingerprint(str(folder)) == checkpoint_fingerprint(plan.model_name)
    if found is None or found.format != plan.format or not same_base:
        raise UserError(f"'{folder}' is not empty: choose another folder, or remove it")
    warn_once(f"'{folder}' is packed already: `dwellmoe pack --check {folder}` reads it again")
    return True


def _torn(folder: Path) -> list[Path]:
    """Files whose writing was interrupted."""
    return [*folder.glob(".*.part")]


def _check_room(plan: PackPlan, folder: Path) -> None:
    """Raises UserError where the files would not fit."""
    there = sum(path.stat().st_blocks * 512 for path in folder.iterdir())
    needed, free = sum(plan.file_bytes) - there, shutil.disk_usage(folder).free
    if free < needed:
        raise UserError(f"'{folder}': {needed:,} bytes more are needed, and {free:,} are free")


def _write(plan: PackPlan, folder: Path, workers: int) -> None:
    for left in _torn(folder):
        left.unlink()
    journal = Journal(folder / PACKING)
    paths = [folder / name for name in plan.names]
    try:
        journal.begin(plan.identity)
        others = _write_others(plan, paths[0])
        write_records(plan, paths[1:], journal, workers)
        _finish(plan, folder, paths, others, journal)
    except KeyboardInterrupt:
        done, total = len(journal.checksums), len(plan.weights.pieces)
        warn_once(f"'{folder}': {done} of {total} experts are packed; {GO_ON}")
        raise
    except UserError as error:
        cause = error.__cause__
        if isinstance(cause, OSError) and cause.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise UserError(f"{error}; make room, and {GO_ON}") from None
        raise


def _write_others(plan: PackPlan, path: Path) -> dict[str, str]:
    """Writes everything but the experts, as it is; gives the checksum of each tensor."""
    path.unlink(missing_ok=True)  # of an earlier run: there may be no room for both
    found = {}
    with replacing(path) as file:
        file.write(plan.others_header())
        for name, tensor in tqdm(plan.others.items(), desc="other weights", unit="tensor"):
            found[name] = checksum_of(_copied(plan.shards.paths[tensor.shard], tensor, file))
        file.flush()
        os.fsync(file.fileno())
    return found


def _copied(path: Path, tensor: StoredTensor, target: BinaryIO) -> Iterator[bytes]:
    """The bytes of a tensor, each written to a file when it is taken."""
    for chunk in chunks_of(path, tensor):
        target.write(chunk)
        yield chunk


def _finish(
    plan: PackPlan, folder: Path, paths: Sequence[Path], others: dict[str, str], journal: Journal
) -> None:
    """Writes all but the weights; the configuration comes last, then the journal goes."""
    source = _folder_of(plan.model_name, plan.shards)
    for path in files_beside_weights(source):
        if path.name not in (SAFE_WEIGHTS_INDEX_NAME, PACKED_INDEX_NAME, INDEX, CONFIG):
            with writing(folder / path.name):
                shutil.copyfile(path, folder / path.name)
    shards = read_shards(paths)
    index = _index(plan, shards, others, journal)
    weight_map = {name: paths[each.shard].name for name, each in sorted(shards.tensors.items())}
    size = sum(each.nbytes for each in shards.tensors.values())
    table = {"metadata": {"total_size": size}, "weight_map": weight_map}
    config = json.loads((source / CONFIG).read_text(encoding="utf-8"))
    for name, text in (
        (INDEX, index.text()),
        (PACKED_INDEX_NAME, json.dumps(table, indent=2) + "\n"),
        (CONFIG, json.dumps(packed_config(config, plan.format), indent=2) + "\n"),
    ):
        with replacing(folder / name) as file:
            file.write(text.encode())
    journal.path.unlink()


def _folder_of(model_name: str, shards: Shards) -> Path:
    """The folder of a checkpoint's small files; of a name on the hub all of them are fetched."""
    if Path(model_name).is_dir():
        return Path(model_name)
    from huggingface_hub import snapshot_download

    return Path(snapshot_download(model_name, ignore_patterns=[f"*{ending}" for ending in WEIGHTS]))


def _index(plan: PackPlan, shards: Shards, others: dict[str, str], journal: Journal) -> PackedIndex:
    flat_ids = itertools.count()
    layers = tuple(
        PackedLayer(
            records=records_name(each.layer),
            record_bytes=each.layout.nbytes,
            formats={name: text_of(matrix.format) for name, matrix in each.layout.matrices.items()},
            checksums=tuple(journal.checksums[next(flat_ids)] for _ in range(each.layer.num_experts)),
        )
        for each in plan.layers
    )
    return PackedIndex(
        format=plan.format,
        source=plan.source,
        source_experts=experts_fingerprint(plan.own_experts),
        weights=fingerprint(shards),
        own_experts=own_experts(shards, layers),
        layers=layers,
        others=others,
    )


def _summary(plan: PackPlan) -> Packed:
    record_bytes = sum(each.layer.num_experts * each.layout.nbytes for each in plan.layers)
    weights = sum(
        each.layer.num_experts * int(np.prod(matrix.shape_OI))
        for each in plan.layers
        for matrix in each.layout.matrices.values()
    )
    return Packed(
        format=plan.format,
        layers=len(plan.layers),
        experts=len(plan.weights.pieces),
        bits_a_weight=8 * record_bytes / weights,
        experts_bytes=record_bytes,
        total_bytes=sum(plan.file_bytes),
        source_bytes=sum(tensor.nbytes for tensor in plan.shards.tensors.values()),
    )
