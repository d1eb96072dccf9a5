"""Knows what happens at a cache when a layer asks for experts; does not know which expert a policy gives up.

This is the only place where residency changes, and the only step there is: the live cache takes one request
through it, the simulator a trace. One row of every array is one cache; E is the number of experts a cache may
be asked for.
"""

import functools
from typing import NamedTuple

import numpy as np

from dwellmoe.cache.access import Stream
from dwellmoe.cache.kernel.jit import bound, compiled_for, helper
from dwellmoe.cache.kernel.pinned_arguments import label_of, reading
from dwellmoe.cache.policies.base import NEVER, AccessTime, functions_of

HITS, MISSES, COMPULSORY, EVICTIONS = range(4)
USED, LIMIT, SEQ, STEP = range(4)
DONE = -1
UNPROTECTED = -1  # a request number that guards nobody; policies need not look at the guard then


class Residency(NamedTuple):
    """Who is resident, and what was counted."""

    resident: np.ndarray  # bool [caches, E]
    guard: np.ndarray  # int64 [caches, E]: the last request that asked for an expert
    fresh: np.ndarray  # bool [caches, E]: being loaded by the present request
    touched: np.ndarray  # bool [caches, E]: asked for since the cache was last emptied
    size: np.ndarray  # int64 [E]: what an expert takes of the limit (1, or its bytes)
    unit: int  # the same for all, or 0
    experts: int  # of one layer
    book: np.ndarray  # int64 [caches, 4]: used, limit, accesses so far, requests so far
    counts: np.ndarray  # int64 [layers, groups, 4]: hits, misses, compulsory misses, evictions

    @classmethod
    def allocate(cls, limits: np.ndarray, size: np.ndarray, layers: int, groups: int) -> "Residency":
        """Empty caches, one for each of `limits`, in the unit of `size` [E]."""
        shape = (len(limits), len(size))
        book = np.zeros((len(limits), 4), np.int64)
        book[:, LIMIT] = limits
        counts = np.zeros((layers, groups, 4), np.int64)
        resident, fresh, touched = (np.zeros(shape, np.bool_) for _ in range(3))
        unit = int(size[0]) if (size == size[0]).all() else 0
        experts = shape[0] * shape[1] // layers
        return cls(resident, np.zeros(shape, np.int64), fresh, touched, size, unit, experts, book, counts)


class Log(NamedTuple):
    """What one run of `advance` loaded and evicted, in order; arrays of length 0 are not written."""

    loads: np.ndarray  # int32
    evictions: np.ndarray  # int32
    lengths: np.ndarray  # int64 [2]: entries written
    offset: int  # number of the cache's first expert


def no_log() -> Log:
    return Log(np.empty(0, np.int32), np.empty(0, np.int32), np.zeros(2, np.int64), 0)


# What a policy says; bound when `advance` is compiled for it.
def clear(policy, cache): ...
def see(policy, cache, layer, ids, first, last, now): ...
def want(policy, cache, expert): ...
def use(policy, cache, expert, fresh, now): ...
def victim(policy, cache, guard, now) -> int: ...  # type: ignore[empty-body]


def advance(policy, residency, cache, stream, sequential, log):
    """Takes the requests of `stream` through one cache; returns DONE, or the first that cannot be.

    Atomic: a request's experts are protected together, room is made, then all are used in router order.
    Sequential: each is asked for after the other, and may leave for the next.
    """
    log.lengths[:] = 0
    place = turn = 0
    for request in range(len(stream.starts) - 1):
        first, last = stream.starts[request], stream.starts[request + 1]
        if turn == stream.wide:
            place, turn = place + 1, 0
        layer = stream.layer + turn
        if turn == 0 and stream.reset[place]:
            empty(policy, residency, cache)
        turn += 1
        if not can_be(residency, cache, layer, stream.ids, first, last, sequential):
            return request
        counts = residency.counts[layer, stream.group[place]]
        begun = AccessTime(residency.book[cache, SEQ] + 1, stream.tick + place, UNPROTECTED, NEVER)
        see(policy, cache, layer, stream.ids, first, last, begun)
        if sequential:
            missed = ask_in_turn(
                policy, residency, cache, stream, first, last, stream.tick + place, counts, log
            )
        else:
            missed = ask_together(
                policy, residency, cache, stream, first, last, stream.tick + place, counts, log
            )
        counts[MISSES] += missed
        counts[HITS] += last - first - missed
        residency.book[cache, SEQ] += last - first
    return DONE


def empty(policy, residency, cache):
    """Back to a cold cache."""
    residency.resident[cache, :] = False
    residency.touched[cache, :] = False
    residency.book[cache, USED] = 0
    clear(policy, cache)


def can_be(residency, cache, layer, ids, first, last, sequential):
    """Whether a request asks only for experts of its layer, and no more at once than the cache holds."""
    lowest = layer * residency.experts if residency.experts < len(residency.size) else 0
    highest = 0
    for at in range(first, last):
        highest = max(highest, np.int64(np.uint32(ids[at] - np.uint32(lowest))))  # below `lowest`: very large
    inside = highest < residency.experts
    if not inside or (sequential and residency.unit > 0):
        return inside and residency.unit <= residency.book[cache, LIMIT]
    residency.book[cache, STEP] += 1
    step = residency.book[cache, STEP]
    asked = 0
    for at in range(first, last):
        expert = ids[at]
        if sequential:
            asked = max(asked, size_of(residency, expert))
        elif residency.guard[cache, expert] != step:
            residency.guard[cache, expert] = step
            asked += size_of(residency, expert)
    return asked <= residency.book[cache, LIMIT]


def ask_in_turn(policy, residency, cache, stream, first, last, tick, counts, log):
    """One request, one access after the other; returns the misses."""
    missed = 0
    seq = residency.book[cache, SEQ] + 1 - first
    for at in range(first, last):
        expert = stream.ids[np.uintp(at)]  # unsigned: see `index_type`
        now = AccessTime(seq + at, tick, UNPROTECTED, next_use_of(stream, at))
        if residency.resident[cache, expert]:
            use(policy, cache, expert, False, now)
        else:
            missed += 1
            admit(policy, residency, cache, expert, counts, log)
            make_room(policy, residency, cache, now, counts, log)
            use(policy, cache, expert, True, now)
    return missed


def ask_together(policy, residency, cache, stream, first, last, tick, counts, log):
    """One request whose experts are all protected; returns the misses. One asked for twice is loaded once."""
    missed = 0
    seq, step = residency.book[cache, SEQ] + 1 - first, residency.book[cache, STEP]
    for at in range(first, last):
        expert = stream.ids[at]
        if not residency.resident[cache, expert]:
            missed += 1
            residency.fresh[cache, expert] = True
            admit(policy, residency, cache, expert, counts, log)
    make_room(policy, residency, cache, AccessTime(seq + first, tick, step, NEVER), counts, log)
    for at in range(first, last):
        expert = stream.ids[at]
        now = AccessTime(seq + at, tick, step, next_use_of(stream, at))
        use(policy, cache, expert, residency.fresh[cache, expert], now)
        residency.fresh[cache, expert] = False
    return missed


@helper
def size_of(residency, expert):
    """What an expert takes of the limit; mostly they are alike, and then nothing is looked up."""
    return residency.unit if residency.unit > 0 else residency.size[expert]


def next_use_of(stream, at):
    """The moment of an access's next use; NEVER where the future is not told."""
    return stream.next_use[at] if len(stream.next_use) > 0 else NEVER


def admit(policy, residency, cache, expert, counts, log):
    """Loads one expert; the room for it is made afterwards."""
    counts[COMPULSORY] += not residency.touched[cache, expert]
    residency.touched[cache, expert] = True
    residency.resident[cache, expert] = True
    residency.book[cache, USED] += size_of(residency, expert)
    want(policy, cache, expert)
    write(log.loads, log.lengths, 0, expert + log.offset)


def make_room(policy, residency, cache, now, counts, log):
    """Evicts until the residents fit."""
    used, limit = residency.book[cache, USED], residency.book[cache, LIMIT]
    while used > limit:
        leaving = victim(policy, cache, residency.guard, now)
        residency.resident[cache, leaving] = False
        used -= size_of(residency, leaving)
        counts[EVICTIONS] += 1
        write(log.evictions, log.lengths, 1, leaving + log.offset)
    residency.book[cache, USED] = used


def write(array, lengths, kind, expert):
    if len(array) > 0 and lengths[kind] < len(array):
        array[lengths[kind]] = expert
        lengths[kind] += 1


# Bound when `serve` is compiled for a policy.
def read(address) -> tuple: ...  # type: ignore[empty-body]


def serve(address, layer, asked, group):
    """One request of a live cache, for the first `asked` ids of a stream; DONE unless it cannot be.

    At `address` is held what `advance` takes, with the token step of each layer; `reset` of the stream has an
    entry for each cache.
    """
    policy, residency, held, ticks, sequential, log = read(address)
    own = residency.book.shape[0] > 1  # each layer has a cache
    cache, begin = (layer if own else 0), layer * residency.experts
    for at in range(0 if own else asked):
        held.ids[at] += np.uint32(begin)
    held.starts[1] = asked
    held.group[0] = group
    cold = held.reset[cache : cache + 1]
    stream = Stream(held.ids, held.starts, held.group, cold, held.next_use, 1, layer, ticks[layer])
    to = Log(log.loads, log.evictions, log.lengths, begin if own else 0)
    done = advance(policy, residency, cache, stream, sequential, to)
    if done == DONE:
        ticks[layer] += 1
        cold[0] = False
    return done


@functools.cache
def serve_for(policy, kind):
    """`serve`, compiled around one policy, whose held arguments are of this kind."""
    label = f"{policy.__name__}-{label_of(kind)}"
    return compiled_for(label, serve, read=reading(kind), advance=advance_for(policy))


# Bound when `take_away` is compiled for a policy.
def drop(policy, cache, expert): ...


def take_away(policy, residency, cache, expert):
    """Evicts one expert by order of the caller; whether it was resident."""
    was_resident = residency.resident[cache, expert]
    if was_resident:
        drop(policy, cache, expert)
        residency.resident[cache, expert] = False
        residency.book[cache, USED] -= size_of(residency, expert)
    return was_resident


@functools.cache
def take_away_for(policy):
    """`take_away`, compiled around one policy."""
    return compiled_for(policy.__name__, take_away, drop=functions_of(policy)["drop"])


@functools.cache
def advance_for(policy):
    """`advance`, compiled around one policy."""
    said = functions_of(policy)
    admitting = bound(admit, want=said["want"], write=write)
    making_room = bound(make_room, victim=said["victim"], write=write)
    names = {"use": said["use"], "admit": admitting, "make_room": making_room, "next_use_of": next_use_of}
    modes = {"ask_in_turn": bound(ask_in_turn, **names), "ask_together": bound(ask_together, **names)}
    emptying = bound(empty, clear=said["clear"])
    return compiled_for(policy.__name__, advance, **modes, see=said["see"], empty=emptying, can_be=can_be)
