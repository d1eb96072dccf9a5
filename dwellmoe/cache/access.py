"""How rows of a trace become requests to caches.

Letters: S rows, L layers, K experts chosen, E routed experts a layer. A *pass* is what ran together: one
decode row, the rows of one batch step, or the rows of one prefill chunk. A pass makes one request of each
layer. Each layer has a cache of its own, or one cache serves all layers and knows experts by flat id.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from dwellmoe.cache.kernel.jit import compiled, helper
from dwellmoe.cache.trace import DECODE, EMPTY, PREFILL, RoutingTrace
from dwellmoe.errors import UserError, unknown_name

MOST_IDS = 32  # experts of a request that other layers' policies see; of a wider one they see nothing
PHASES = {"prefill": (PREFILL,), "decode": (DECODE,), "all": (PREFILL, DECODE)}


class Stream(NamedTuple):
    """Requests to one cache in order: request r is for ids[starts[r] : starts[r + 1]]."""

    ids: np.ndarray  # uint32 [accesses]
    starts: np.ndarray  # int64 [requests + 1]
    group: np.ndarray  # int32 [passes]: where the pass is counted
    reset: np.ndarray  # bool [passes]: the cache is emptied first
    next_use: np.ndarray  # int64 [accesses], or empty where nothing needs the future
    requests_per_pass: int  # one of each layer that the cache serves
    layer: int  # the first of these layers
    step: int  # token step of the first pass
    layer_ids: (
        np.ndarray
    )  # uint16 [passes + 1, layers, 1 + MOST_IDS] (`write_layer_ids`), or empty: not needed


@dataclass(frozen=True, eq=False)
class PassIndex:
    """Which rows run together; all arrays have one entry a pass."""

    begin: np.ndarray  # int64: first row
    end: np.ndarray  # int64: one past the last row
    distinct: np.ndarray  # bool: an expert that several rows chose is one access (prefill)
    request: np.ndarray  # int32: of the first row
    phase: np.ndarray  # uint8

    def __len__(self) -> int:
        return len(self.begin)


def check_phase(phase: str) -> None:
    """UserError for what is no phase."""
    if phase not in PHASES:
        raise unknown_name("phase", phase, PHASES)


def passes_of(trace: RoutingTrace, phase: str) -> PassIndex:
    """The passes of `phase` ("prefill", "decode" or "all"), in time order. UserError if there is none."""
    check_phase(phase)
    begin = np.flatnonzero(_starts_pass(trace))
    end = np.append(begin[1:], trace.steps)
    kept = np.isin(trace.phase[begin], PHASES[phase])
    if not kept.any():
        raise UserError(f"the trace has no {phase} steps")
    begin, end = begin[kept], end[kept]
    return PassIndex(begin, end, trace.phase[begin] == PREFILL, trace.request[begin], trace.phase[begin])


def _starts_pass(trace: RoutingTrace) -> np.ndarray:
    """bool [S]: whether a row begins a pass."""
    if trace.batch_step is not None:
        return _changes(trace.phase) | _changes(trace.batch_step)
    decode = trace.phase == DECODE
    chunk = (
        _changes(trace.request) if trace.chunk is None else _changes(trace.request) | _changes(trace.chunk)
    )
    return _changes(trace.phase) | decode | chunk


def _changes(values: np.ndarray) -> np.ndarray:
    return np.append(True, values[1:] != values[:-1])


def no_layer_ids() -> np.ndarray:
    """What a stream has for policies that look at no other layer."""
    return np.empty((0, 0, 0), np.uint16)


@helper
def write_layer_ids(row, ids, first, last, lowest):
    """Writes what one layer requested in one pass to `row`: 1 + the number of ids, then the ids within the
    layer, whose first flat id is `lowest`. 0 in front: the layer has not run yet.
    """
    row[0] = 1
    if last - first <= MOST_IDS:
        row[0] = 1 + last - first
        for i in range(first, last):
            row[1 + i - first] = ids[i] - lowest


@helper
def begin_pass(layer_ids, layer):
    """The running pass becomes the last one where it has this layer already, or a later one."""
    if len(layer_ids) == 0:
        return
    ran = False
    for other in range(layer, layer_ids.shape[1]):
        ran |= layer_ids[1, other, 0] > 0
    if ran:
        for other in range(layer_ids.shape[1]):
            for i in range(layer_ids.shape[2]):
                layer_ids[0, other, i] = layer_ids[1, other, i]
                layer_ids[1, other, i] = 0


def layer_ids_of(
    ids: np.ndarray, starts: np.ndarray, layers: int, num_experts: int, missing: int
) -> np.ndarray:
    """`Stream.layer_ids` of a stream that has a request of every layer in each pass; the first `missing` rows
    are of passes before it and stay 0.
    """
    passes = (len(starts) - 1) // layers
    found = np.zeros((missing + passes, layers, 1 + MOST_IDS), np.uint16)
    _write_all(ids, starts, num_experts, found[missing:])
    return found


@compiled
def _write_all(ids, starts, num_experts, found):
    layers = found.shape[1]
    for request in range(len(starts) - 1):
        layer = request % layers
        row = found[request // layers, layer]
        write_layer_ids(row, ids, starts[request], starts[request + 1], np.uint32(layer * num_experts))


def used_by(trace: RoutingTrace, layer: int) -> np.ndarray:
    """bool [S, E]: the experts that each row of a trace used in one layer."""
    chosen = trace.experts[:, layer].astype(np.int64)
    used_SE = np.zeros((len(chosen), trace.num_experts + 1), np.bool_)
    np.put_along_axis(used_SE, np.where(chosen == EMPTY, trace.num_experts, chosen), True, axis=1)
    return used_SE[:, :-1]


def gather(experts, begin, end, distinct, first_layer, layers, num_experts):
    """(ids, starts) as in `Stream`, for `layers` layers from `first_layer` on.

    Pass p is the rows experts[begin[p] : end[p]].
    """
    # Allocated here: NumPy takes large pages, which are several times as fast to fill, and numba does not.
    top_k = experts.shape[2]
    ids = np.empty(int((end - begin).sum()) * layers * top_k, np.uint32)
    starts = np.empty(len(begin) * layers + 1, np.int64)
    offsets = np.repeat(np.arange(layers, dtype=np.uint32) * np.uint32(num_experts), top_k)
    rows = experts.reshape(len(experts), -1)
    latest = np.full(num_experts, -1)  # the latest request for each expert of a layer
    count = _gather(rows, begin, end, distinct, first_layer * top_k, offsets, top_k, latest, ids, starts)
    return ids[:count], starts


@compiled
def _gather(rows, begin, end, distinct, first, offsets, top_k, latest, ids, starts):
    count = request = 0
    for p in range(len(begin)):
        alone = end[p] == begin[p] + 1 and _copy(rows, begin[p], first, offsets, ids, count)
        for column in range(0, len(offsets), top_k):
            starts[request] = count
            request += 1
            if alone:
                count += top_k
            else:
                for row in range(begin[p], end[p]):
                    for slot in range(column, column + top_k):
                        chosen = rows[row, first + slot]
                        if chosen != EMPTY and not (distinct[p] and latest[chosen] == request):
                            latest[chosen] = request
                            ids[count] = chosen + offsets[slot]
                            count += 1
    starts[request] = count
    return count


@helper
def _copy(rows, row, first, offsets, ids, count):
    """Writes one row after the first `count` ids; whether it has no empty slot. Suits vector instructions."""
    highest = np.uint16(0)
    for i in range(len(offsets)):
        chosen = rows[row, first + i]
        ids[count + i] = chosen + offsets[i]
        highest = max(highest, chosen)
    return highest < EMPTY
