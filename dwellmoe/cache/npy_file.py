"""Maps an array of a .npy file into memory."""

from math import prod
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.lib import format as npy

from dwellmoe.errors import UserError, first_line

READERS = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}


class _Header(NamedTuple):
    shape: tuple[int, ...]
    fortran_order: bool
    dtype: np.dtype
    size_bytes: int


def map_array(path: Path, expected: str) -> np.ndarray:
    """The array, of which nothing is read yet. UserError for a broken file, an empty array and for pickled
    objects, in whose place `expected` says what is read.
    """
    header = _read_header(path)
    if header.dtype.hasobject:
        raise UserError(f"{path}: holds pickled Python objects, which are not read: expected {expected}")
    if min(header.shape, default=1) <= 0:
        raise UserError(f"{path}: the trace is empty: the array has shape {list(header.shape)}")
    data_bytes = path.stat().st_size - header.size_bytes
    needed_bytes = header.dtype.itemsize * prod(header.shape)
    if data_bytes != needed_bytes:
        raise UserError(
            f"{path}: not a whole .npy file: {list(header.shape)} {header.dtype} takes {needed_bytes} bytes, "
            f"{data_bytes} are there"
        )
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
