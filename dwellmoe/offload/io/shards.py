"""Shards: the files of a safetensors checkpoint, and where in them each tensor lies.

Without torch, and for a folder without transformers: a wrong checkpoint is refused before they are imported.
"""

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from dwellmoe.cache.tensor_file import read_header
from dwellmoe.errors import UserError, first_line
from dwellmoe.files import check_no_pointers, is_missing_folder
from dwellmoe.log import warn_once

SAFE_WEIGHTS_NAME, SAFE_WEIGHTS_INDEX_NAME = "model.safetensors", "model.safetensors.index.json"
PACKED_INDEX_NAME = "packed.safetensors.index.json"
"""Of a packed model: under the usual name transformers would load it, with random numbers for its experts."""
WEIGHTS_NAME, WEIGHTS_INDEX_NAME = "pytorch_model.bin", "pytorch_model.bin.index.json"
ADAPTER = "adapter_config.json"
SHARDS = "model-*-of-*.safetensors"
CHUNK_BYTES = 1 << 22
PACKING = ".packing"
"""In a folder into which `dwellmoe pack` writes: which experts are done."""
WEIGHTS = (".safetensors", ".bin", ".gguf", ".pt", ".pth", ".h5", ".msgpack", ".onnx")
"""Endings of files of weights."""


class StoredTensor(NamedTuple):
    """Where one tensor lies, and what it is."""

    shard: int
    offset: int
    """Bytes from the beginning of the file."""
    nbytes: int
    shape: tuple[int, ...]
    dtype: str
    """As safetensors calls it: "BF16"."""


class Shards(NamedTuple):
    """The files of a checkpoint and every tensor in them."""

    paths: tuple[Path, ...]
    tensors: dict[str, StoredTensor]


def check_folder(model_name: str) -> None:
    """Raises UserError for a path without a folder, for a folder whose large files Git did not fetch, and for
    one into which a model is still to be packed.
    """
    if is_missing_folder(model_name):
        raise UserError(f"no model folder at '{model_name}'")
    if (Path(model_name) / PACKING).exists():
        raise UserError(f"'{model_name}' is not packed to its end: the same `dwellmoe pack` goes on with it")
    if Path(model_name).is_dir():
        check_no_pointers(Path(model_name))


def find_shards(model_name: str) -> Shards:
    """The safetensors files of a folder, or of a name on the Hugging Face hub: `model.safetensors`, else the
    shards of its index. This is what transformers reads, so a model is the same in memory and in a cache.

    Raises UserError for a missing folder, one that holds two checkpoints or an adapter too, a checkpoint in
    another format, a missing or truncated shard, a tensor that the index lists and its shard lacks, and one
    that two shards hold differently.
    """
    check_folder(model_name)
    single, index = (
        cached_file_of(model_name, SAFE_WEIGHTS_NAME),
        _index_of(model_name),
    )
    weight_map = {} if index is None else _weight_map(index)
    names = sorted(set(weight_map.values()))
    _check_no_adapter(model_name)
    if single is not None:
        _check_alone(model_name, [name for name in names if name != SAFE_WEIGHTS_NAME])
        return read_shards([single])
    if index is None:
        raise UserError(f"checkpoint '{model_name}': {_other_format(model_name)}")
    paths = [cached_file_of(model_name, name) for name in names]
    if missing := [name for name, path in zip(names, paths, strict=True) if path is None]:
        raise UserError(f"checkpoint '{model_name}': shard {missing[0]} is missing")
    _say_unread(model_name, names)
    shards = read_shards([path for path in paths if path is not None])
    if lost := [name for name in weight_map if name not in shards.tensors]:
        raise UserError(f"checkpoint '{model_name}': {weight_map[lost[0]]} lacks tensor '{lost[0]}'")
    return shards


def _index_of(model_name: str) -> Path | None:
    """The list of a checkpoint's shards; that of a packed model has another name."""
    names = (SAFE_WEIGHTS_INDEX_NAME, PACKED_INDEX_NAME)
    return next(filter(None, (cached_file_of(model_name, name) for name in names)), None)


def files_beside_weights(folder: Path) -> list[Path]:
    """The small files of a checkpoint: configurations, tokenizer, model card."""
    return [
        path
        for path in sorted(folder.iterdir())
        if path.is_file() and not path.name.startswith(".") and path.suffix not in WEIGHTS
    ]


def check_checkpoint(model_name: str) -> Shards | None:
    """Raises UserError as `find_shards` does; a checkpoint without safetensors files passes, with None."""
    check_folder(model_name)
    if cached_file_of(model_name, SAFE_WEIGHTS_NAME) or _index_of(model_name):
        return find_shards(model_name)
    return None


def _check_no_adapter(model_name: str) -> None:
    """Raises UserError for an adapter beside the weights, which transformers would put on unasked."""
    if (Path(model_name) / ADAPTER).exists():
        raise UserError(
            f"checkpoint '{model_name}' holds an adapter too ({ADAPTER}): move the adapter to a folder of "
            "its own, and name that"
        )


def _check_alone(model_name: str, indexed: list[str]) -> None:
    """Raises UserError if the shards of an index lie beside `model.safetensors`; says what is not read."""
    if indexed and any((Path(model_name) / name).exists() for name in indexed):
        raise UserError(
            f"checkpoint '{model_name}' is two: {SAFE_WEIGHTS_NAME}, and the shards of "
            f"{SAFE_WEIGHTS_INDEX_NAME} ({indexed[0]}, ...): move one of them away"
        )
    if indexed:
        warn_once(
            f"'{model_name}': {SAFE_WEIGHTS_NAME} is read; {SAFE_WEIGHTS_INDEX_NAME} and its shards are not"
        )
    _say_unread(model_name, [])


def _say_unread(model_name: str, read: list[str]) -> None:
    """Says which shards lie in the folder and are no part of the checkpoint."""
    beside = {path.name for path in Path(model_name).glob(SHARDS)} - set(read)
    if beside:
        warn_once(f"'{model_name}': not read, because no index names them: {', '.join(sorted(beside))}")


def _other_format(model_name: str) -> str:
    pickled = any(cached_file_of(model_name, name) for name in (WEIGHTS_NAME, WEIGHTS_INDEX_NAME))
    if pickled:
        return (
            "its weights are pickled (.bin), which cannot be read in place: save it as safetensors with "
            "transformers' save_pretrained"
        )
    return f"no {SAFE_WEIGHTS_NAME} and no {SAFE_WEIGHTS_INDEX_NAME}"


def cached_file_of(model_name: str, name: str) -> Path | None:
    """A file of the checkpoint; None where there is none."""
    if Path(model_name).is_dir():
        path = Path(model_name) / name
        return path if path.is_file() else None
    from transformers.utils.hub import cached_file

    try:
        found = cached_file(
            model_name,
            name,
            _raise_exceptions_for_gated_repo=False,
            _raise_exceptions_for_missing_entries=False,
            _raise_exceptions_for_connection_errors=False,
        )
    except OSError as error:
        raise UserError(f"checkpoint '{model_name}': {first_line(error)}") from None
    return None if found is None else Path(found)


def _weight_map(index: Path) -> dict[str, str]:
    try:
        table = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        return {str(tensor): str(file) for tensor, file in table.items()}
    except (OSError, ValueError, KeyError, AttributeError, TypeError, RecursionError):
        raise UserError(f"{index}: not an index of safetensors files") from None


def read_shards(paths: Iterable[Path]) -> Shards:
    """The tensors of these files. Raises UserError."""
    tensors: dict[str, StoredTensor] = {}
    paths = tuple(paths)
    for shard, path in enumerate(paths):
        header, begin = read_header(path)
        size_bytes = path.stat().st_size
        for name, entry in header.items():
            if name != "__metadata__":
                found = _stored_tensor(path, size_bytes, shard, begin, name, entry)
                if name in tensors:
                    _check_same(paths, name, tensors[name], found)
                tensors[name] = found
    return Shards(paths, tensors)


def _check_same(paths: tuple[Path, ...], name: str, one: StoredTensor, other: StoredTensor) -> None:
    """Raises UserError for a tensor whose bytes differ between two shards."""
    first, second = paths[one.shard], paths[other.shard]
    if one[2:] != other[2:] or not np.array_equal(_bytes_of(first, one), _bytes_of(second, other)):
        raise UserError(f"tensor '{name}' is in {first} and, with another content, in {second}")


def _bytes_of(path: Path, tensor: StoredTensor) -> np.ndarray:
    if not tensor.nbytes:
        return np.empty(0, np.uint8)
    return np.memmap(path, np.uint8, "r", tensor.offset, tensor.nbytes)


def chunks_of(path: Path, tensor: StoredTensor) -> Iterator[bytes]:
    """The bytes of a tensor, a few megabytes at a time; fewer than it has where the file ends before."""
    with open(path, "rb") as file:
        file.seek(tensor.offset)
        left = tensor.nbytes
        while left and (chunk := file.read(min(left, CHUNK_BYTES))):
            yield chunk
            left -= len(chunk)


def _stored_tensor(
    path: Path, size_bytes: int, shard: int, begin: int, name: str, entry: dict
) -> StoredTensor:
    try:
        first, last = entry["data_offsets"]
        found = StoredTensor(shard, begin + first, last - first, tuple(entry["shape"]), entry["dtype"])
    except (KeyError, TypeError, ValueError):
        raise UserError(f"{path}: tensor '{name}' has a broken entry {entry}") from None
    if begin + last > size_bytes:
        raise UserError(
            f"{path}: truncated: tensor '{name}' ends at byte {begin + last}, the file at {size_bytes}"
        )
    return found
