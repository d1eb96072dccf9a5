"""Arrays of chosen experts as serving engines return them: whole numbers [tokens, layers, top_k] in a .npy
file. -1 is an empty slot; in uint16, which has no -1, 65535 is.
"""

from math import prod
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.lib import format as npy

from dwellmoe.cache.memory import check_memory
from dwellmoe.cache.trace import BLOCK_BYTES, DECODE, EMPTY, PREFILL, SIGNED_EMPTY, RoutingTrace
from dwellmoe.errors import UserError, first_line
from dwellmoe.files import replacing
from dwellmoe.log import warn_once

SUFFIXES = (".npy",)
HINTS = ("num_experts", "prompt_tokens")
READERS = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}
EXPECTED = "whole numbers [tokens, layers, top_k]"


def recognise(head: bytes) -> bool:
    return head.startswith(b"\x93NUMPY")


def read(path: Path, num_experts: int | None = None, prompt_tokens: int = 0) -> RoutingTrace:
    """One request; its first `prompt_tokens` rows are prefill. Rows and layers without any expert, which pad
    a batch or have no experts, are left out.
    """
    if num_experts is None:
        raise UserError(f"{path}: an array does not state the experts a layer: give --num_experts")
    if not 1 <= num_experts < EMPTY:
        raise UserError(f"{path}: num_experts must be 1 to {EMPTY - 1}, got {num_experts}")
    chosen = _map(path)
    if not 0 <= prompt_tokens <= len(chosen):
        raise UserError(f"{path}: prompt_tokens must be 0 to {len(chosen)}, got {prompt_tokens}")
    experts = _ids(path, chosen, num_experts)
    phase = np.full(len(chosen), DECODE, np.uint8)
    phase[:prompt_tokens] = PREFILL
    rows, layers = _used(path, experts)
    try:
        return RoutingTrace(
            experts[rows][:, layers],
            phase[rows],
            np.zeros(len(rows), np.int32),
            num_experts,
            layer_ids=layers.tolist(),
            source=path.name,
        )
    except UserError as error:
        raise UserError(f"{path}: {error}") from None


class _Header(NamedTuple):
    shape: tuple[int, ...]
    fortran_order: bool
    dtype: np.dtype
    size_bytes: int


def _map(path: Path) -> np.ndarray:
    """The array, mapped into memory; nothing of it is read yet."""
    header = _read_header(path)
    if header.dtype.hasobject:
        raise UserError(f"{path}: holds pickled Python objects, which are not read: expected {EXPECTED}")
    if header.dtype.kind not in "iu" or len(header.shape) != 3:
        raise UserError(f"{path}: expected {EXPECTED}, got {header.dtype} {list(header.shape)}")
    if min(header.shape) <= 0:
        raise UserError(f"{path}: the trace is empty: the array has shape {list(header.shape)}")
    data_bytes = path.stat().st_size - header.size_bytes
    needed_bytes = header.dtype.itemsize * prod(header.shape)
    if data_bytes != needed_bytes:
        raise UserError(
            f"{path}: not a whole .npy file: {list(header.shape)} {header.dtype} takes {needed_bytes} bytes, "
            f"{data_bytes} are there"
        )
    check_memory(4 * prod(header.shape), f"{path}: a trace of {list(header.shape)}")  # twice, in uint16
    order = "F" if header.fortran_order else "C"
    return np.memmap(path, header.dtype, "r", header.size_bytes, header.shape, order)


def _read_header(path: Path) -> _Header:
    with open(path, "rb") as file:
        try:
            version = npy.read_magic(file)
            shape, fortran_order, dtype = READERS[version](file)
        except Exception as error:  # NumPy evaluates the header as Python: of a broken one, anything can come
            raise UserError(f"{path}: not a whole .npy file: {first_line(error)}") from None
        return _Header(shape, fortran_order, dtype, file.tell())


def _ids(path: Path, chosen: np.ndarray, num_experts: int) -> np.ndarray:
    """uint16 of the same shape, with `EMPTY` where a slot is; a block of rows at a time."""
    absent = EMPTY if chosen.dtype == np.uint16 else SIGNED_EMPTY
    experts = np.empty(chosen.shape, np.uint16)
    count = max(1, BLOCK_BYTES // (chosen.nbytes // len(chosen)))
    for begin in range(0, len(chosen), count):
        block = chosen[begin : begin + count]
        empty = block == absent
        bad = np.argwhere(~empty & ((block < 0) | (block >= num_experts)))
        if len(bad):
            row, layer, slot = bad[0].tolist()
            raise UserError(
                f"{path}: row {begin + row}, layer {layer}, slot {slot} is {block[row, layer, slot]}: "
                f"ids must be {absent} (empty) or 0 to {num_experts - 1}"
            )
        experts[begin : begin + count] = np.where(empty, EMPTY, block)
    return experts


def _used(path: Path, experts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The rows and the layers that have an expert. UserError where none has."""
    used = (experts != EMPTY).any(axis=2)
    rows, layers = np.flatnonzero(used.any(axis=1)), np.flatnonzero(used.any(axis=0))
    if not len(rows):
        raise UserError(f"{path}: the trace is empty: it has only empty slots")
    for kind, kept, all_of in (("rows", rows, len(used)), ("layers", layers, used.shape[1])):
        if len(kept) < all_of:
            warn_once(f"{path}: {all_of - len(kept)} of {all_of} {kind} hold no expert and are left out")
    return rows, layers


def write(trace: RoutingTrace, path: str | Path) -> None:
    """Writes the chosen experts of all rows; phases, requests and weights have no place in the format."""
    if trace.num_experts > np.iinfo(np.int16).max:
        raise UserError(f"{path}: {trace.num_experts} experts a layer do not fit into int16")
    chosen = np.where(trace.experts == EMPTY, SIGNED_EMPTY, trace.experts.astype(np.int32)).astype(np.int16)
    with replacing(path) as file:
        np.save(file, chosen, allow_pickle=False)
