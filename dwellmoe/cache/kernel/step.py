"""The compiled step of a cache: what happens when a layer requests experts.

This is the only place where residency changes, and the only step there is: the live cache takes one request
through it, the simulator a trace. Which expert leaves is the policy's choice (`policies/base.py`). One row of
every array is one cache. Letter: E experts, of all layers that a cache serves.
"""

import functools
from typing import NamedTuple

import numpy as np

from dwellmoe.cache.access import Stream, begin_pass, write_layer_ids
from dwellmoe.cache.kernel.jit import bound, compiled_for, helper, label_of
from dwellmoe.cache.kernel.pinned_arguments import label_of_kind, reading
from dwellmoe.cache.policies.base import NEVER, AccessTime, hooks_of

HITS, MISSES, COMPULSORY, EVICTIONS = range(4)  # columns of `Residency.counts`
USED, LIMIT, ACCESSES, REQUESTS = range(4)  # columns of `Residency.totals`
DONE = -1
UNPROTECTED = -1  # a request number that protects no expert


class Residency(NamedTuple):
    """Which experts are resident, and what was counted."""

    resident: np.ndarray  # bool [caches, E]
    protected: np.ndarray  # int64 [caches, E]: the last request that named an expert
    inserted: np.ndarray  # bool [caches, E]: being loaded by the present request
    touched: np.ndarray  # bool [caches, E]: requested since the cache was last emptied
    size: np.ndarray  # int64 [E]: what an expert takes of the limit (1, or its bytes)
    unit: int  # the size where all are alike, else 0
    experts: int  # of one layer
    totals: np.ndarray  # int64 [caches, 4]: used, limit, accesses so far, requests so far
    counts: np.ndarray  # int64 [layers, groups, 4]: hits, misses, compulsory misses, evictions

    @classmethod
    def allocate(cls, limits: np.ndarray, size: np.ndarray, layers: int, groups: int) -> "Residency":
        """Empty caches, one for each of `limits`, in the unit of `size` [E]."""
        shape = (len(limits), len(size))
        totals = np.zeros((len(limits), 4), np.int64)
        totals[:, LIMIT] = limits
        return cls(
            resident=np.zeros(shape, np.bool_),
            protected=np.zeros(shape, np.int64),
            inserted=np.zeros(shape, np.bool_),
            touched=np.zeros(shape, np.bool_),
            size=size,
            unit=int(size[0]) if (size == size[0]).all() else 0,
            experts=shape[0] * shape[1] // layers,
            totals=totals,
            counts=np.zeros((layers, groups, 4), np.int64),
        )


class Log(NamedTuple):
    """What one run of `advance` loaded and evicted, in order; arrays of length 0 are not written."""

    loads: np.ndarray  # int32
    evictions: np.ndarray  # int32
    lengths: np.ndarray  # int64 [2]: entries written
    offset: int  # flat id of the cache's first expert


def no_log() -> Log:
    return Log(np.empty(0, np.int32), np.empty(0, np.int32), np.zeros(2, np.int64), 0)


# The policy's hooks; bound when `advance` is compiled for it.
def reset(policy, cache): ...
def on_layers(policy, cache, layer, layer_ids, running): ...
def on_request(policy, cache, layer, ids, first, last, now): ...
def on_miss(policy, cache, expert): ...
def on_access(policy, cache, expert, inserted, now): ...
def evict(policy, cache, protected, now) -> int: ...  # type: ignore[empty-body]


def advance(policy, residency, cache, stream, sequential, log):
    """Takes the requests of `stream` through one cache; returns DONE, or the first one that is impossible.

    Atomic: a request's experts are protected together, room is made, then all are used in router order.
    Sequential: each is requested after the other, and may leave for the next.
    """
    log.lengths[:] = 0
    pass_index = request_index = 0
    for request in range(len(stream.starts) - 1):
        first, last = stream.starts[request], stream.starts[request + 1]
        if request_index == stream.requests_per_pass:
            pass_index, request_index = pass_index + 1, 0
        layer = stream.layer + request_index
        if request_index == 0 and stream.reset[pass_index]:
            empty(policy, residency, cache)
        request_index += 1
        if not is_possible(residency, cache, layer, stream.ids, first, last, sequential):
            return request
        step = stream.step + pass_index
        counts = residency.counts[layer, stream.group[pass_index]]
        begin = AccessTime(residency.totals[cache, ACCESSES] + 1, step, UNPROTECTED, NEVER)
        on_layers(policy, cache, layer, stream.layer_ids, pass_index + 1)
        on_request(policy, cache, layer, stream.ids, first, last, begin)
        if sequential:
            missed = serve_one_by_one(policy, residency, cache, stream, first, last, step, counts, log)
        else:
            missed = serve_together(policy, residency, cache, stream, first, last, step, counts, log)
        counts[MISSES] += missed
        counts[HITS] += last - first - missed
        residency.totals[cache, ACCESSES] += last - first
    return DONE


def empty(policy, residency, cache):
    """Back to a cold cache."""
    residency.resident[cache, :] = False
    residency.touched[cache, :] = False
    residency.totals[cache, USED] = 0
    reset(policy, cache)


def is_possible(residency, cache, layer, ids, first, last, sequential):
    """Whether a request names only experts of its layer, and no more at once than the cache holds."""
    lowest = layer * residency.experts if residency.experts < len(residency.size) else 0
    highest = 0
    for i in range(first, last):
        highest = max(highest, np.int64(np.uint32(ids[i] - np.uint32(lowest))))  # below `lowest`: very large
    inside = highest < residency.experts
    if not inside or (sequential and residency.unit > 0):
        return inside and residency.unit <= residency.totals[cache, LIMIT]
    residency.totals[cache, REQUESTS] += 1
    request = residency.totals[cache, REQUESTS]
    needed = 0
    for i in range(first, last):
        expert = ids[i]
        if sequential:
            needed = max(needed, size_of(residency, expert))
        elif residency.protected[cache, expert] != request:
            residency.protected[cache, expert] = request
            needed += size_of(residency, expert)
    return needed <= residency.totals[cache, LIMIT]


def serve_one_by_one(policy, residency, cache, stream, first, last, step, counts, log):
    """One request, one access after the other; returns the misses."""
    missed = 0
    access = residency.totals[cache, ACCESSES] + 1 - first
    for i in range(first, last):
        expert = stream.ids[np.uintp(i)]  # unsigned: see `index_type`
        now = AccessTime(access + i, step, UNPROTECTED, next_use_of(stream, i))
        if residency.resident[cache, expert]:
            on_access(policy, cache, expert, False, now)
        else:
            missed += 1
            admit(policy, residency, cache, expert, counts, log)
            make_room(policy, residency, cache, now, counts, log)
            on_access(policy, cache, expert, True, now)
    return missed


def serve_together(policy, residency, cache, stream, first, last, step, counts, log):
    """One request whose experts are all protected; returns the misses. One named twice is loaded once."""
    missed = 0
    access, request = residency.totals[cache, ACCESSES] + 1 - first, residency.totals[cache, REQUESTS]
    for i in range(first, last):
        expert = stream.ids[i]
        if not residency.resident[cache, expert]:
            missed += 1
            residency.inserted[cache, expert] = True
            admit(policy, residency, cache, expert, counts, log)
    make_room(policy, residency, cache, AccessTime(access + first, step, request, NEVER), counts, log)
    for i in range(first, last):
        expert = stream.ids[i]
        now = AccessTime(access + i, step, request, next_use_of(stream, i))
        on_access(policy, cache, expert, residency.inserted[cache, expert], now)
        residency.inserted[cache, expert] = False
    return missed


@helper
def size_of(residency, expert):
    """What an expert takes of the limit; mostly they are alike, and then nothing is looked up."""
    return residency.unit if residency.unit > 0 else residency.size[expert]


def next_use_of(stream, i):
    """The time of an access's next use; NEVER where the stream has no future."""
    return stream.next_use[i] if len(stream.next_use) > 0 else NEVER


def admit(policy, residency, cache, expert, counts, log):
    """Loads one expert; the room for it is made afterwards."""
    counts[COMPULSORY] += not residency.touched[cache, expert]
    residency.touched[cache, expert] = True
    residency.resident[cache, expert] = True
    residency.totals[cache, USED] += size_of(residency, expert)
    on_miss(policy, cache, expert)
    write(log.loads, log.lengths, 0, expert + log.offset)


def make_room(policy, residency, cache, now, counts, log):
    """Evicts until the residents fit."""
    used, limit = residency.totals[cache, USED], residency.totals[cache, LIMIT]
    while used > limit:
        leaving = evict(policy, cache, residency.protected, now)
        residency.resident[cache, leaving] = False
        used -= size_of(residency, leaving)
        counts[EVICTIONS] += 1
        write(log.evictions, log.lengths, 1, leaving + log.offset)
    residency.totals[cache, USED] = used


def write(array, lengths, kind, expert):
    if len(array) > 0 and lengths[kind] < len(array):
        array[lengths[kind]] = expert
        lengths[kind] += 1


# Bound when `serve` is compiled for a policy.
def read(address) -> tuple: ...  # type: ignore[empty-body]


def serve(address, layer, requested, group):
    """One request of a live cache, for the first `requested` ids of a stream; DONE unless it is impossible.

    At `address` lies what `advance` takes, with the token step of each layer; `reset` of the stream has an
    entry for each cache.
    """
    policy, residency, stream, steps, sequential, log = read(address)
    own = residency.totals.shape[0] > 1  # each layer has a cache
    cache, begin = (layer if own else 0), layer * residency.experts
    begin_pass(stream.layer_ids, layer)
    for i in range(0 if own else requested):
        stream.ids[i] += np.uint32(begin)
    stream.starts[1] = requested
    stream.group[0] = group
    cold = stream.reset[cache : cache + 1]
    one = Stream(
        stream.ids,
        stream.starts,
        stream.group,
        cold,
        stream.next_use,
        1,
        layer,
        steps[layer],
        stream.layer_ids,
    )
    offset_log = Log(log.loads, log.evictions, log.lengths, begin if own else 0)
    done = advance(policy, residency, cache, one, sequential, offset_log)
    if done == DONE:
        steps[layer] += 1
        cold[0] = False
        if len(stream.layer_ids) > 0:
            lowest = np.uint32(0 if own else begin)
            write_layer_ids(stream.layer_ids[1, layer], stream.ids, 0, requested, lowest)
    return done


@functools.cache
def serve_for(policy, kind):
    """`serve`, compiled around one policy, whose pinned arguments are of this kind."""
    label = f"{label_of(policy)}-{label_of_kind(kind)}"
    return compiled_for(label, serve, read=reading(kind), advance=advance_for(policy))


# Bound when `discard` is compiled for a policy.
def remove(policy, cache, expert): ...


def discard(policy, residency, cache, expert):
    """Evicts one expert by order of the caller; whether it was resident."""
    was_resident = residency.resident[cache, expert]
    if was_resident:
        remove(policy, cache, expert)
        residency.resident[cache, expert] = False
        residency.totals[cache, USED] -= size_of(residency, expert)
    return was_resident


@functools.cache
def discard_for(policy):
    """`discard`, compiled around one policy."""
    return compiled_for(label_of(policy), discard, remove=hooks_of(policy)["remove"])


@functools.cache
def advance_for(policy):
    """`advance`, compiled around one policy."""
    hooks = hooks_of(policy)
    serving = {
        "on_access": hooks["on_access"],
        "admit": bound(admit, on_miss=hooks["on_miss"], write=write),
        "make_room": bound(make_room, evict=hooks["evict"], write=write),
        "next_use_of": next_use_of,
    }
    return compiled_for(
        label_of(policy),
        advance,
        serve_one_by_one=bound(serve_one_by_one, **serving),
        serve_together=bound(serve_together, **serving),
        on_layers=hooks["on_layers"],
        on_request=hooks["on_request"],
        empty=bound(empty, reset=hooks["reset"]),
        is_possible=is_possible,
    )
