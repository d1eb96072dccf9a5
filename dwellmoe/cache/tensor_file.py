"""Reads and writes .safetensors files; a file that is read is mapped into memory."""

import json
import os
from pathlib import Path
from typing import BinaryIO

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


def write_tensors(path: str | os.PathLike, tensors: dict[str, np.ndarray], metadata: dict[str, str]) -> None:
    """Writes a file a few megabytes at a time, so that a mapped tensor may be larger than memory."""
    header: dict = {"__metadata__": metadata}
    ordered = sorted(tensors.items(), key=lambda item: -item[1].dtype.itemsize)  # keeps every tensor aligned
    end = 0
    for name, tensor in ordered:
        begin, end = end, end + tensor.nbytes
        header[name] = {
            "dtype": NAMES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [begin, end],
        }
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with replacing(path) as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for _, tensor in ordered:
            _copy(np.ascontiguousarray(tensor).reshape(-1), file)


def _copy(flat: np.ndarray, file: BinaryIO) -> None:
    count = max(1, COPY_BYTES // flat.dtype.itemsize)
    for begin in range(0, len(flat), count):
        file.write(flat[begin : begin + count].data)


def map_tensors(path: str | os.PathLike) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Maps every tensor of a .safetensors file read-only; returns them by name, with the file's metadata.

    Raises UserError for a file that is missing, truncated, or not of this format.
    """
    path = Path(path)
    header, data_begin = read_header(path)
    metadata = header.pop("__metadata__", {})
    data_bytes = path.stat().st_size - data_begin
    if not isinstance(metadata, dict):
        raise UserError(f"{path}: broken header: metadata is not an object")
    return {name: _map(path, data_begin, data_bytes, name, entry) for name, entry in header.items()}, metadata


def read_header(path: Path) -> tuple[dict, int]:
    """(tensor -> entry, first byte of the data). UserError for a file that is not of this format."""
    try:
        size_bytes = path.stat().st_size
        with open(path, "rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if size_bytes < 8 or length > min(size_bytes - 8, LONGEST_HEADER_BYTES):
                raise UserError(f"{path}: not a .safetensors file, or truncated in its header")
            header = json.loads(file.read(length))
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from error
    except ValueError as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{path}: not a .safetensors file: its header is not JSON") from error
    if not isinstance(header, dict):
        raise UserError(f"{path}: broken header: expected an object, got {type(header).__name__}")
    return header, 8 + length


def _map(path: Path, data_begin: int, data_bytes: int, name: str, entry: dict) -> np.ndarray:
    try:
        dtype = np.dtype(DTYPES[entry["dtype"]])
        shape = tuple(entry["shape"])
        begin, end = entry["data_offsets"]
        expected_bytes = dtype.itemsize * int(np.prod(shape, dtype=np.int64))
        in_order = 0 <= begin <= end
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path}: tensor '{name}' has a broken or unsupported entry {entry}") from error
    if not in_order or end - begin != expected_bytes:
        raise UserError(
            f"{path}: tensor '{name}': {end - begin} bytes given, {expected_bytes} needed for {shape} {dtype}"
        )
    if end > data_bytes:
        raise UserError(
            f"{path}: truncated: tensor '{name}' ends at byte {data_begin + end}, "
            f"the file at {data_begin + data_bytes}"
        )
    if expected_bytes == 0:
        return np.empty(shape, dtype)
    mapped = np.memmap(path, dtype, "r", data_begin + begin, shape)
    return mapped if mapped.flags.aligned else mapped.copy()
