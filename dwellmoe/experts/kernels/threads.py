"""Runs compiled passes on the threads that torch computes with.

A pass is cut into chunks, and each thread takes the next one. Threads of any other library would share the
processors with torch's, which wait actively for a while after each of torch's operations: the passes are
given to the same OpenMP library instead. Where none is found a pass runs on one thread.
"""

import ctypes
import functools
import sys
from array import array
from collections.abc import Callable
from pathlib import Path
from types import FunctionType
from typing import Any

import numba
import numpy as np
import torch
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic
from torch import Tensor

from dwellmoe.cache.kernel.jit import bound, sources_digest
from dwellmoe.experts.kernels.writer import Writer

FOLDER = Path(__file__).resolve().parent
FIELDS = (
    *("next_chunk", "outputs", "inputs", "rows", "block", "part_outputs", "block_outputs"),
    *("matrices", "codes", "scales", "x", "out"),
)
"""The numbers that a pass is given: sizes, and the addresses of its arrays. The first is shared."""
Work = types.CPointer(numba.from_dtype(np.dtype([(name, np.int64) for name in FIELDS])))


@intrinsic
def _count_up(typing_context, work):
    """Adds 1 to the first number of `work` in one step; the number before."""

    def generate(context, builder, signature, arguments):
        counter = builder.bitcast(arguments[0], ir.IntType(64).as_pointer())
        return builder.atomic_rmw("add", counter, ir.Constant(ir.IntType(64), 1), "monotonic")

    return types.int64(work), generate


@intrinsic
def _pointer(typing_context, address):
    """The pointer to an address."""

    def generate(context, builder, signature, arguments):
        return builder.inttoptr(arguments[0], cgutils.voidptr_t)

    return types.voidptr(types.int64), generate


@intrinsic
def _prefetch(typing_context, address):
    """Asks for the cache line at an address, which need not be memory of ours."""

    def generate(context, builder, signature, arguments):
        Writer(builder).prefetch(arguments[0])
        return context.get_dummy_value()

    return types.void(types.int64), generate


take_chunk: Any = _count_up
"""`take_chunk(pointer)` in a pass: the number of the next chunk, which no other thread is given."""
prefetch: Any = _prefetch
"""`prefetch(address)` in a pass: begins to load what a later step reads."""
memory: Any = _pointer
"""`memory(address)` in a pass: of which `numba.carray` makes an array."""


def inlined(function: Callable) -> Callable:
    """Compiles a function that makes arrays of addresses into whatever calls it."""
    return numba.njit(function, forceinline=True)


def pass_of(function: FunctionType, label: str, **names: Any) -> FunctionType:
    """A pass in which global names mean what is given for them; the label names its machine code."""
    copy = bound(function, **names)
    copy.__qualname__ += f"-{label}"
    return copy


def run(function: FunctionType, **work: int | Tensor) -> None:
    """Runs a pass, all of its chunks, on as many threads as torch uses."""
    numbers = array("q", [_number(work[name]) if name in work else 0 for name in FIELDS])
    place, _ = numbers.buffer_info()
    threads, parallel = torch.get_num_threads(), _parallel()
    if parallel is None or threads == 1:
        _compiled(function)[1](place)
    else:
        parallel(_compiled(function)[0], place, threads, 0)


def address_of(tensor: Tensor) -> int:
    """Where a tensor's numbers begin, which a pass takes as following one another."""
    assert tensor.is_contiguous() and tensor.is_cpu
    return tensor.data_ptr()


def _number(value: int | Tensor) -> int:
    return value if isinstance(value, int) else address_of(value)


@functools.cache
def _compiled(function: FunctionType) -> tuple[int, Callable, Any]:
    """The address of a pass's machine code, the same for calls from Python, and what keeps it."""
    function.__qualname__ += f"-{sources_digest()}-{sources_digest(FOLDER)}"
    try:
        code: Any = numba.cfunc(types.void(Work), cache=True)(function)
    except RuntimeError:  # no folder to keep it in
        code = numba.cfunc(types.void(Work))(function)
    return code.address, ctypes.CFUNCTYPE(None, ctypes.c_void_p)(code.address), code


@functools.cache
def _parallel() -> Callable | None:
    """`GOMP_parallel(function, data, threads, flags)` of the OpenMP library that torch loaded."""
    if sys.platform == "win32":
        return None
    found: Any = getattr(ctypes.CDLL(None), "GOMP_parallel", None)
    if found is not None:
        found.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint]
        found.restype = None
    return found
