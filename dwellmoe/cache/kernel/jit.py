"""How hot loops are compiled, bound to a policy's functions, and kept on disk as machine code."""

import functools
import hashlib
import inspect
import warnings
from collections.abc import Callable
from pathlib import Path
from types import FunctionType
from typing import Any

import numba
import numpy as np
from numba.core import event

from dwellmoe.log import warn_once

# Loops over caches allocate nothing, so they need not count references to their arrays; counting them at each
# call takes several times as long as the step itself.
BARE: dict[str, Any] = {"_nrt": False, "forceinline": True, "no_cfunc_wrapper": True}

PACKAGE = Path(__file__).resolve().parents[1]


@functools.cache
def sources_digest(folder: Path = PACKAGE) -> str:
    """Fingerprint of the sources of a folder: an edit must never meet machine code from before it."""
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*.py")):
        digest.update(path.name.encode() + path.read_bytes())
    return digest.hexdigest()[:12]


@functools.cache
def label_of(policy: type) -> str:
    """The policy's name in names of machine code, with a digest of what `sources_digest` does not cover.

    That is a policy of a user's file. The module's name counts as well, for machine code on disk refers to
    the policy by it; so does the code itself, for the file may have changed since it was imported.
    """
    file = _source_of(policy)
    if file and file.is_relative_to(PACKAGE):
        return policy.__name__
    digest = hashlib.sha256(policy.__module__.encode() + (file.read_bytes() if file else b""))
    for name, function in inspect.getmembers(policy, inspect.isfunction):
        code = function.__code__
        digest.update(f"{name} {code.co_code!r} {code.co_names} {code.co_consts}".encode())
    return f"{policy.__name__}-{digest.hexdigest()[:12]}"


def _source_of(policy: type) -> Path | None:
    """The file of a class; None where it was typed in."""
    try:
        file = Path(inspect.getsourcefile(policy) or "").resolve()
    except TypeError:
        return None
    return file if file.is_file() else None


def compiled(function: Callable, **options) -> Callable:
    """Compiles `function` without holding the GIL; keeps the result on disk where a folder can be written.

    numba names the file on disk after `__qualname__` and looks only at the file the function is in. The
    digest in the name covers what the function calls as well, and lets two versions of the code coexist.
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
    """The smallest type that indexes `count` things: smaller arrays fit a nearer cache of the processor.

    Unsigned: with a signed index, numba checks at every look-up whether it counts from the end.
    """
    return np.uint16 if count <= np.iinfo(np.uint16).max else np.uint32


def helper(function: Callable) -> Callable:
    """Compiles `function` into whatever calls it; it has no machine code of its own on disk.

    Python never calls it: the code that would unpack its arguments takes longer to compile than all the rest.
    """
    options: dict[str, Any] = {"no_cpython_wrapper": True, **BARE}
    return numba.njit(function, **options)


def bound(function: Callable, **names: Callable) -> FunctionType:
    """A copy of `function` in which the given global names mean the given functions.

    So one loop is written once and compiled for each policy. numba cannot keep on disk what takes functions
    as arguments, and a file on disk with a single entry needs no lock between processes.
    """
    plain = {name: helper(value) for name, value in names.items() if isinstance(value, FunctionType)}
    copy = FunctionType(function.__code__, {**function.__globals__, **names, **plain}, function.__name__)
    copy.__qualname__ = function.__qualname__
    return copy


def compiled_for(label: str, kernel: Callable, **names: Callable) -> Callable:
    """`kernel` with its names bound, compiled, and kept on disk under `label`."""
    copy = bound(kernel, **names)
    copy.__qualname__ += f"-{label}"
    function = compiled(copy, **BARE)
    if names:
        _compiled_around[function] = label.partition("-")[0]
    return function


_compiled_around: dict[Any, str] = {}
"""A compiled function -> the policy that it is compiled around."""


class _Announce(event.Listener):
    """Says that a policy is compiled, which takes seconds; there is no event where it is read from disk."""

    def on_start(self, event: Any) -> None:
        if policy := _compiled_around.get(event.data["dispatcher"]):
            warn_once(f"note: compiling the expert cache with policy {policy}; kept for later runs")

    def on_end(self, event: Any) -> None:
        pass


event.register("numba:compile", _Announce())


def direct(function: Callable, *arguments) -> Callable:
    """The machine code behind a compiled function, for arguments of exactly these types.

    Calling it skips numba's look at the type of each argument, which takes longer than a step of a cache.
    """
    if not hasattr(function, "compile"):
        return function  # numba is switched off
    return function.compile(tuple(numba.typeof(argument) for argument in arguments))
