"""Shards: the files of a safetensors checkpoint, and where in them each tensor lies."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import torch
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME
from transformers.utils.hub import cached_file

from dwellmoe.cache.tensor_file import read_header
from dwellmoe.errors import UserError

DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


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
    """Raises UserError for a path without a folder. A name on the Hugging Face hub is no path: it has at most
    one slash, and no dot before it.
    """
    looks_local = model_name.startswith((".", "/", "~", "models/")) or model_name.count("/") > 1
    if looks_local and not Path(model_name).is_dir():
        raise UserError(f"no model folder at '{model_name}'")


def find_shards(model_name: str) -> Shards:
    """The safetensors files of a folder, or of a name on the Hugging Face hub: those of its index if it has
    one.

    Raises UserError for a missing folder, a checkpoint in another format, a missing or truncated shard, and a
    tensor that the index lists and its shard lacks.
    """
    check_folder(model_name)
    index = _cached(model_name, SAFE_WEIGHTS_INDEX_NAME)
    if index is None:
        single = _cached(model_name, SAFE_WEIGHTS_NAME)
        if single is None:
            raise UserError(
                f"checkpoint '{model_name}': no {SAFE_WEIGHTS_NAME} and no {SAFE_WEIGHTS_INDEX_NAME}"
            )
        return _read([single])
    weight_map = _weight_map(index)
    names = sorted(set(weight_map.values()))
    paths = [_cached(model_name, name) for name in names]
    if missing := [name for name, path in zip(names, paths, strict=True) if path is None]:
        raise UserError(f"checkpoint '{model_name}': shard {missing[0]} is missing")
    shards = _read([path for path in paths if path is not None])
    if lost := [name for name in weight_map if name not in shards.tensors]:
        raise UserError(f"checkpoint '{model_name}': {weight_map[lost[0]]} lacks tensor '{lost[0]}'")
    return shards


def _cached(model_name: str, name: str) -> Path | None:
    found = cached_file(
        model_name,
        name,
        _raise_exceptions_for_gated_repo=False,
        _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_connection_errors=False,
    )
    return None if found is None else Path(found)


def _weight_map(index: Path) -> dict[str, str]:
    try:
        table = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        return {str(tensor): str(file) for tensor, file in table.items()}
    except (OSError, ValueError, KeyError, AttributeError, TypeError):
        raise UserError(f"{index}: not an index of safetensors files") from None


def _read(paths: Iterable[Path]) -> Shards:
    tensors: dict[str, StoredTensor] = {}
    paths = tuple(paths)
    for shard, path in enumerate(paths):
        header, begin = read_header(path)
        size_bytes = path.stat().st_size
        for name, entry in header.items():
            if name != "__metadata__":
                tensors[name] = _stored_tensor(path, size_bytes, shard, begin, name, entry)
    return Shards(paths, tensors)


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
