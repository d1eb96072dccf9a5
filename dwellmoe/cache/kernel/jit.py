"""Knows how hot loops are compiled and where the machine code is kept; does not know what they compute."""

import functools
import hashlib
import warnings
from collections.abc import Callable
from pathlib import Path
from types import FunctionType
from typing import Any

import numba
import numpy as np

# Loops over caches allocate nothing, so they need not count references to their arrays; counting them at each
# call takes several times as long as the step itself.
BARE: dict[str, Any] = {"_nrt": False, "forceinline": True}


@functools.cache
def sources_digest() -> str:
    """Fingerprint of this package's sources: stale machine code must never be found after an edit."""
    digest = hashlib.sha256()
    for path in sorted(Path(__file__).parents[1].rglob("*.py")):
        digest.update(path.name.encode() + path.read_bytes())
    return digest.hexdigest()[:12]


def compiled(function: Callable, **options) -> Callable:
    """Compiles `function` without holding the GIL; keeps the result on disk where a folder can be written.

    numba names the file on disk after `__qualname__` and looks only at the file the function is in. The
    digest in the name covers what the function calls as well, and lets two versions of the code live side by
    side.
    """
    function.__qualname__ = f"{function.__qualname__}-{sources_digest()}"
    try:
        return numba.njit(function, cache=True, nogil=True, **options)
    except RuntimeError:
        warnings.warn(
            "no writable folder for compiled code: it is compiled again at each start", stacklevel=2
        )
        return numba.njit(function, nogil=True, **options)


def index_type(count: int) -> type:
    """The smallest type that numbers `count` things: half the memory is more of the nearest cache.

    Unsigned: before every look-up by a signed number numba asks whether it counts from the end.
    """
    return np.uint16 if count <= np.iinfo(np.uint16).max else np.uint32


def helper(function: Callable) -> Callable:
    """Compiles `function` into whatever calls it; it has no machine code of its own on disk."""
    return numba.njit(function, **BARE)


def bound(function: Callable, **names: Callable) -> FunctionType:
    """A copy of `function` in which the given global names mean the given functions.

    This is how one loop is written once and compiled for each policy. numba cannot keep on disk what takes
    functions as arguments, and a file on disk with a single entry needs no lock between processes.
    """
    plain = {name: helper(value) for name, value in names.items() if isinstance(value, FunctionType)}
    copy = FunctionType(function.__code__, {**function.__globals__, **names, **plain}, function.__name__)
    copy.__qualname__ = function.__qualname__
    return copy


def compiled_for(label: str, kernel: Callable, **names: Callable) -> Callable:
    """`kernel` with its names bound, compiled, and kept on disk under `label`."""
    copy = bound(kernel, **names)
    copy.__qualname__ += f"-{label}"
    return compiled(copy, **BARE)


def direct(function: Callable, *arguments) -> Callable:
    """The machine code behind a compiled function, for arguments of exactly these types.

    Calling it leaves out numba's look at the types of each argument, which takes longer than a step of a
    cache.
    """
    if not hasattr(function, "compile"):
        return function  # numba is switched off
    return function.compile(tuple(numba.typeof(argument) for argument in arguments))
