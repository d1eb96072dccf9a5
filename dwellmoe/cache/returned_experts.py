"""Arrays of chosen experts, as serving engines return them for each request, made into one trace.

An array holds whole numbers [tokens, layers, top_k]. -1 is an empty slot; in uint16, which has no -1, 65535
is. Engines leave zeros where no router ran, as in a dense layer: a set of several zeros is empty, too.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from dwellmoe.cache.trace import BLOCK_BYTES, DECODE, EMPTY, PREFILL, SIGNED_EMPTY, RoutingTrace
from dwellmoe.errors import UserError
from dwellmoe.log import warn_once


class ReturnedExperts(NamedTuple):
    """The experts of one request."""

    chosen: np.ndarray  # [tokens, layers, top_k]
    prompt_tokens: int  # rows at the beginning that are prefill
    where: str  # the file, and the place in it, for messages


def trace_of(
    path: Path, requests: Sequence[ReturnedExperts], num_experts: int, model: str = ""
) -> RoutingTrace:
    """One trace of all requests, in order. Rows and layers without any expert, which pad a batch or have no
    experts, are left out.
    """
    experts = [_ids(request, num_experts) for request in requests]
    _check_alike(requests)
    _empty_zero_sets(path, experts)
    rows, layers = _used(path, experts)
    phases = [_phase(request) for request in requests]
    numbers = [np.full(len(ids), number, np.int32) for number, ids in enumerate(experts)]
    whole = experts[0] if len(experts) == 1 else np.concatenate(experts)
    try:
        return RoutingTrace(
            whole[rows][:, layers],
            np.concatenate(phases)[rows],
            np.concatenate(numbers)[rows],
            num_experts,
            layer_ids=layers.tolist(),
            source=path.name,
            model=model,
        )
    except UserError as error:
        raise UserError(f"{path}: {error}") from None


def signed_ids(trace: RoutingTrace, path: str | Path) -> np.ndarray:
    """The chosen experts as such an array, int16 with -1 for an empty slot. UserError for too many."""
    if trace.num_experts > np.iinfo(np.int16).max:
        raise UserError(f"{path}: {trace.num_experts} experts a layer do not fit into int16")
    return np.where(trace.experts == EMPTY, SIGNED_EMPTY, trace.experts.astype(np.int32)).astype(np.int16)


def _phase(request: ReturnedExperts) -> np.ndarray:
    decoded = np.arange(len(request.chosen)) >= request.prompt_tokens
    return np.where(decoded, DECODE, PREFILL).astype(np.uint8)


def _check_alike(requests: Sequence[ReturnedExperts]) -> None:
    first = requests[0]
    for request in requests:
        if request.chosen.shape[1:] != first.chosen.shape[1:]:
            shapes = [list(found.chosen.shape[1:]) for found in (request, first)]
            raise UserError(f"{request.where}: [layers, top_k] is {shapes[0]}, but {shapes[1]} before")


def _ids(request: ReturnedExperts, num_experts: int) -> np.ndarray:
    """uint16 of the same shape, with `EMPTY` where a slot is; a block of rows at a time."""
    chosen = request.chosen
    absent = EMPTY if chosen.dtype == np.uint16 else SIGNED_EMPTY
    experts = np.empty(chosen.shape, np.uint16)
    count = max(1, BLOCK_BYTES // max(1, chosen.nbytes // max(1, len(chosen))))
    for begin in range(0, len(chosen), count):
        block = chosen[begin : begin + count]
        empty = block == absent
        bad = np.argwhere(~empty & ((block < 0) | (block >= num_experts)))
        if len(bad):
            row, layer, slot = bad[0].tolist()
            raise UserError(
                f"{request.where}: row {begin + row}, layer {layer}, slot {slot} is "
                f"{block[row, layer, slot]}: ids must be {absent} (empty) or 0 to {num_experts - 1}"
            )
        experts[begin : begin + count] = np.where(empty, EMPTY, block)
    return experts


def _empty_zero_sets(path: Path, experts: Sequence[np.ndarray]) -> None:
    """Empties each set of several zeros: no router chooses an expert twice."""
    found = 0
    for ids in experts:
        zero = ~ids.any(axis=2) if ids.shape[2] > 1 else np.zeros(ids.shape[:2], np.bool_)
        ids[zero] = EMPTY
        found += int(zero.sum())
    if found:
        warn_once(f"{path}: {found} sets hold only zeros, as where no router ran, and count as empty")


def _used(path: Path, experts: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """The rows and the layers that have an expert. UserError where none has."""
    used = np.concatenate([(ids != EMPTY).any(axis=2) for ids in experts])
    rows, layers = np.flatnonzero(used.any(axis=1)), np.flatnonzero(used.any(axis=0))
    if not len(rows):
        raise UserError(f"{path}: the trace is empty: it has only empty slots")
    for kind, kept, all_of in (("rows", rows, len(used)), ("layers", layers, used.shape[1])):
        if len(kept) < all_of:
            warn_once(f"{path}: {all_of - len(kept)} of {all_of} {kind} hold no expert and are left out")
    return rows, layers
