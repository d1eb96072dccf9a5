"""Reads and writes .safetensors files; a file that is read is mapped into memory."""

import json
import os
import stat
from collections.abc import Mapping, Sequence
from math import prod
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from dwellmoe.errors import UserError
from dwellmoe.files import replacing

DTYPES = {
    "BOOL": np.bool_, "U8": np.uint8, "I8": np.int8, "U16": np.uint16, "I16": np.int16, "F16": np.float16,
    "U32": np.uint32, "I32": np.int32, "F32": np.float32,
    "U64": np.uint64, "I64": np.int64, "F64": np.float64,
}  # fmt: skip
NAMES = {np.dtype(dtype): name for name, dtype in DTYPES.items()}
LONGEST_HEADER_BYTES = 100_000_000
COPY_BYTES = 1 << 24
MOST_DIMENSIONS = 8


def write_tensors(path: str | os.PathLike, tensors: dict[str, np.ndarray], metadata: dict[str, str]) -> None:
    """Writes a file a few megabytes at a time, so that a mapped tensor may be larger than memory."""
    ordered = sorted(tensors.items(), key=lambda item: -item[1].dtype.itemsize)  # keeps every tensor aligned
    entries = {name: (NAMES[tensor.dtype], tensor.shape, tensor.nbytes) for name, tensor in ordered}
    with replacing(path) as file:
        file.write(header_of(entries, metadata))
        for _, tensor in ordered:
            _copy(np.ascontiguousarray(tensor).reshape(-1), file)


def header_of(
    entries: Mapping[str, tuple[str, Sequence[int], int]], metadata: Mapping[str, str], alignment: int = 8
) -> bytes:
    """The bytes of a file before its data, which begins at a multiple of `alignment`.

    entries  tensor -> (type as safetensors calls it, shape, bytes), in the order of the data
    """
    header: dict = {"__metadata__": dict(metadata)}
    end = 0
    for name, (dtype, shape, nbytes) in entries.items():
        begin, end = end, end + nbytes
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    text += b" " * (-(8 + len(text)) % alignment)
    return len(text).to_bytes(8, "little") + text


def _copy(flat: np.ndarray, file: BinaryIO) -> None:
    count = max(1, COPY_BYTES // flat.dtype.itemsize)
    for begin in range(0, len(flat), count):
        file.write(flat[begin : begin + count].data)


def map_tensors(
    path: str | os.PathLike, also: Mapping[str, type[np.generic]] | None = None
) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Maps every tensor of a .safetensors file read-only; returns them by name, with the file's metadata.

    `also`: types of the file that NumPy lacks -> the type as which their bits are mapped. Raises UserError
    for a file that is missing, truncated, or not of this format.
    """
    dtypes = {**DTYPES, **(also or {})}
    path = Path(path)
    header, data_begin = read_header(path)
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(map(_is_text, metadata.values())):
        raise UserError(f"{path}: broken header: __metadata__ must be an object of texts")
    entries = {name: _parse_entry(path, name, entry, dtypes) for name, entry in header.items()}
    _check_places(path, entries, data_begin)
    return {name: _map(path, data_begin, entry) for name, entry in entries.items()}, metadata


def read_header(path: Path) -> tuple[dict, int]:
    """(tensor -> entry, first byte of the data). UserError for a file that is not of this format."""
    try:
        check_regular(path)
        size_bytes = path.stat().st_size
        with open(path, "rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if size_bytes < 8 or length > min(size_bytes - 8, LONGEST_HEADER_BYTES):
                raise UserError(f"{path}: not a .safetensors file, or truncated in its header")
            header = json.loads(file.read(length))
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{path}: not a .safetensors file: its header is not JSON") from error
    if not isinstance(header, dict):
        raise UserError(f"{path}: broken header: expected an object, got {type(header).__name__}")
    return header, 8 + length


def check_regular(path: Path) -> None:
    """UserError for a device or a pipe: it may never end, and cannot be read twice. OSError if missing."""
    mode = path.stat().st_mode
    if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
        raise UserError(f"{path}: cannot be read: a device or a pipe, expected a file")


class _Entry(NamedTuple):
    """Where a tensor lies behind the header, and what it holds."""

    dtype: np.dtype
    shape: tuple[int, ...]
    begin: int
    end: int


def _parse_entry(path: Path, name: str, entry: Any, dtypes: Mapping[str, type[np.generic]]) -> _Entry:
    try:
        dtype = np.dtype(dtypes[entry["dtype"]])
        found = _Entry(dtype, tuple(entry["shape"]), *entry["data_offsets"])
        whole = all(type(number) is int and number >= 0 for number in (*found.shape, *found[2:]))
    except (KeyError, TypeError, ValueError):
        whole = False
    if not whole or len(found.shape) > MOST_DIMENSIONS:
        raise UserError(f"{path}: tensor {name!r:.60} has a broken or unsupported entry {entry!s:.200}")
    expected_bytes = dtype.itemsize * prod(found.shape)
    if found.end - found.begin != expected_bytes:
        raise UserError(
            f"{path}: tensor {name!r:.60}: {found.end - found.begin} bytes given, {expected_bytes} needed "
            f"for {list(found.shape)} {dtype}"
        )
    return found


def _check_places(path: Path, entries: dict[str, _Entry], data_begin: int) -> None:
    """UserError unless the tensors lie one after the other and fill the file."""
    data_bytes = path.stat().st_size - data_begin
    end = 0
    for name, entry in sorted(entries.items(), key=lambda item: item[1][2:]):
        if entry.end > data_bytes:
            raise UserError(
                f"{path}: truncated: tensor {name!r:.60} ends at byte {data_begin + entry.end}, "
                f"the file at {data_begin + data_bytes}"
            )
        if entry.begin != end:
            raise UserError(
                f"{path}: tensor {name!r:.60} begins at {entry.begin}, the one before ends at {end}"
            )
        end = entry.end
    if end != data_bytes:
        raise UserError(
            f"{path}: the tensors end at byte {data_begin + end}, the file at {data_begin + data_bytes}"
        )


def _map(path: Path, data_begin: int, entry: _Entry) -> np.ndarray:
    if entry.begin == entry.end:
        return np.empty(entry.shape, entry.dtype)
    mapped = np.memmap(path, entry.dtype, "r", data_begin + entry.begin, entry.shape)
    return mapped if mapped.flags.aligned else mapped.copy()


def _is_text(value: Any) -> bool:
    """Whether a value of JSON is text that can be printed: half of a surrogate pair cannot."""
    return isinstance(value, str) and not any("\ud800" <= letter <= "\udfff" for letter in value)
