"""Formats of routing traces, one file each; `dwellmoe.register_trace_format` adds one from outside.

A format has
SUFFIXES                    the endings of its files; the longest one that fits decides what is written. One
                            without any is only read, by its content, and has no `write`
HINTS                       names of what a caller may state about a file that does not state it itself
recognise(head) -> bool     whether a file that begins so, after a byte-order mark, is of this format
read(path, **hints)         RoutingTrace; UserError for a broken file
write(trace, path)          the file appears complete or not at all
"""

import codecs
from pathlib import Path

from dwellmoe.cache.tensor_file import check_regular
from dwellmoe.cache.trace import EMPTY, RoutingTrace
from dwellmoe.errors import UserError
from dwellmoe.registry import Registry

HEAD_BYTES = 4096
"""Of a file, shown to `recognise`: the names of the first tensors of a .safetensors file are among them."""
FORMATS = Registry("trace format", __name__, None)


def format_names() -> list[str]:
    """Every format there is."""
    return FORMATS.names()


def read_trace(path: str | Path, **hints: int | None) -> RoutingTrace:
    """Reads a trace in any format: one of the user's by its ending, else by its content, else by its ending.

    UserError for an unknown format, a broken file, or a hint that has no effect.
    """
    path = Path(path)
    given = {name: value for name, value in hints.items() if value is not None}
    module = _of_the_user(path) or _recognised(path) or _by_ending(path)
    without_effect = sorted(set(given) - set(module.HINTS))
    if without_effect:
        raise UserError(f"{path}: {without_effect[0]} has no effect on a trace of this format")
    try:
        return module.read(path, **given)
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from None
    except MemoryError:
        raise UserError(f"{path}: does not fit into memory") from None


def check_num_experts(path: Path, num_experts: int | None) -> int:
    """The experts a layer, for a format that does not state them. UserError where they are not given."""
    if num_experts is None:
        raise UserError(f"{path}: the format does not state the experts a layer: give --num_experts")
    if not 1 <= num_experts < EMPTY:
        raise UserError(f"{path}: num_experts must be 1 to {EMPTY - 1}, got {num_experts}")
    return num_experts


def write_trace(trace: RoutingTrace, path: str | Path) -> None:
    """Writes `trace` in the format that `path` ends like; the file appears complete or not at all."""
    _by_ending(Path(path)).write(trace, path)


def check_ending(path: Path) -> None:
    """UserError for the name of a file that ends like no format that is written."""
    _by_ending(path)


def _modules() -> list:
    return [FORMATS.get(name) for name in format_names()]


def _recognised(path: Path):
    try:
        check_regular(path)
        with open(path, "rb") as file:
            head = file.read(HEAD_BYTES).removeprefix(codecs.BOM_UTF8)
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from None
    return next((module for module in _modules() if module.recognise(head)), None)


def _of_the_user(path: Path):
    """The registered format that has the ending: a built-in one may take such content for its own."""
    registered = [FORMATS.get(name) for name in sorted(FORMATS.registered_names())]
    return next((module for module in registered if path.name.endswith(tuple(module.SUFFIXES))), None)


def _by_ending(path: Path):
    known = {suffix: module for module in _modules() for suffix in module.SUFFIXES}
    fitting = [suffix for suffix in known if path.name.endswith(suffix)]
    if not fitting:
        raise UserError(f"{path}: not a trace in any known format: choose an ending from {', '.join(known)}")
    return known[max(fitting, key=len)]
