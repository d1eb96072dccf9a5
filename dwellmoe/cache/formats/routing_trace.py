"""This project's own trace files (.safetensors), as `RoutingTrace` writes them."""

import json
from pathlib import Path

import numpy as np

from dwellmoe.cache.tensor_file import map_tensors
from dwellmoe.cache.trace import EMPTY, FORMAT, LAYOUT, VERSION, RoutingTrace, release
from dwellmoe.errors import UserError, first_line
from dwellmoe.log import warn_once

SUFFIXES = (".safetensors",)
HINTS = ()
write = RoutingTrace.save


def recognise(head: bytes) -> bool:
    return head[7:9] == b"\0{"  # the length of the header, whose highest byte is never used, then JSON


def read(path: Path) -> RoutingTrace:
    """Maps a file into memory (nothing is copied) and checks all of it, a block at a time."""
    tensors, metadata = map_tensors(path)
    try:
        trace = RoutingTrace(**_known_tensors(tensors), **_parse_metadata(metadata))
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    return _without_empty_rows(path, trace)


def _without_empty_rows(path: Path, trace: RoutingTrace) -> RoutingTrace:
    """The rows that hold an expert: one without is no token step."""
    used = np.empty(trace.steps, np.bool_)
    for rows in trace.blocks():
        block = trace.experts[rows.start : rows.stop].reshape(len(rows), -1)
        used[rows.start : rows.stop] = block.min(axis=1) != EMPTY
        release(trace.experts)
    if used.all():
        return trace
    warn_once(f"{path}: {int((~used).sum())} of {trace.steps} rows hold no expert and are left out")
    return trace.take(used)


def _known_tensors(tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    unknown = sorted(set(tensors) - set(LAYOUT))
    missing = [name for name, (_, _, needed) in LAYOUT.items() if needed and name not in tensors]
    if unknown or missing:
        raise UserError(f"not a routing trace: tensors missing {missing}, unknown {unknown[:8]}")
    return tensors


def _parse_metadata(metadata: dict[str, str]) -> dict:
    found = (metadata.get("format"), metadata.get("version"))
    if found != (FORMAT, VERSION):
        raise UserError(f"format and version must be {FORMAT} 1, got {found[0]!r:.40} {found[1]!r:.40}")
    try:
        return {
            "num_experts": json.loads(metadata["num_experts"]),
            "layer_ids": _numbers(metadata["layer_ids"]),
            "expert_bytes": _numbers(metadata["expert_bytes"]),
            "model": metadata.get("model", ""),
            "source": metadata.get("source", ""),
            "categories": _categories(metadata.get("categories", "null")),
            "chat_template": {"true": True, "false": False, "null": None}[
                metadata.get("chat_template", "null")
            ],
        }
    except (AttributeError, KeyError, TypeError, ValueError, RecursionError) as error:
        raise UserError(
            "metadata num_experts, layer_ids, expert_bytes, categories or chat_template is missing or "
            f"broken: {first_line(error)}"
        ) from None


def _numbers(text: str) -> tuple[int, ...]:
    found = json.loads(text)
    if not isinstance(found, list) or not all(type(value) is int for value in found):
        raise TypeError(f"expected a list of whole numbers, got {text[:60]}")
    return tuple(found)


def _categories(text: str) -> dict[int, str] | None:
    """request -> category, of a JSON object with the requests of each category."""
    found = json.loads(text)
    if found is None:
        return None
    return {request: name for name, requests in found.items() for request in _numbers(json.dumps(requests))}
