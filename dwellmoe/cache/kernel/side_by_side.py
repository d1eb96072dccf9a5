"""Knows how to run parts of one cache's stream at the same time; does not know what a policy keeps.

Under a policy that says FORGETS (`lru`), with experts of one size, who is resident depends on nothing but the
last uses. A part can therefore begin with an empty cache some passes early: when it has asked for as many
different experts as the cache holds, the cache is the one that the whole past would have left.
"""

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np

from dwellmoe.cache.access import Stream
from dwellmoe.cache.kernel.jit import compiled
from dwellmoe.cache.kernel.step import LIMIT, Residency

LEAST_ACCESSES = 1 << 18  # of a part; below, a thread is not worth its start


class CacheState(NamedTuple):
    """All that one simulated cache is."""

    policy: Any
    residency: Residency


Feed = Callable[[CacheState, Stream], None]


def feed_side_by_side(
    state: CacheState, fresh: Callable[[], CacheState], stream: Stream, feed: Feed
) -> CacheState:
    """Takes a stream through the one cache of `state` on all cores; returns the state it ends in.

    The counts are added to those of `state`. `fresh` makes an empty state; `feed` takes a state through a
    stream.
    """
    begins = _begins(stream, state.residency)
    ends = [begin for begin, _ in begins[1:]] + [len(stream.group)]
    touched = state.residency.touched[0].copy()

    def run(number: int) -> CacheState:
        (begin, early), end = begins[number], ends[number]
        if number == 0:
            feed(state, _part(stream, begin, end))
            return state
        own = fresh()
        feed(own, _warm_up(_part(stream, early, begin), own.residency))
        own.residency.touched[0] = touched
        _touch(_part(stream, 0, begin), own.residency.touched[0])
        feed(own, _part(stream, begin, end))
        return own

    if len(begins) == 1:
        return run(0)
    with ThreadPoolExecutor(len(begins)) as pool:
        states = list(pool.map(run, range(len(begins))))
    for other in states[1:]:
        state.residency.counts[:] += other.residency.counts
    last = states[-1]
    return CacheState(last.policy, last.residency._replace(counts=state.residency.counts))


def _begins(stream: Stream, residency: Residency) -> list[tuple[int, int]]:
    """Of each part: its first pass, and the pass from which an empty cache arrives there as it must be."""
    passes = len(stream.group)
    parts = max(1, min(os.cpu_count() or 1, len(stream.ids) // LEAST_ACCESSES, passes))
    wanted = [passes * part // parts for part in range(1, parts)]
    slots = int(residency.totals[0, LIMIT]) // residency.unit
    seen = np.zeros((parts, len(residency.size)), np.bool_)
    found = [(begin, _early(stream, begin, slots, seen[at])) for at, begin in enumerate(wanted)]
    return [(0, 0), *((begin, early) for begin, early in found if early >= 0)]


def _part(stream: Stream, begin: int, end: int) -> Stream:
    starts = stream.starts[begin * stream.requests_per_pass : end * stream.requests_per_pass + 1]
    group, reset = stream.group[begin:end], stream.reset[begin:end]
    return stream._replace(starts=starts, group=group, reset=reset, step=stream.step + begin)


def _warm_up(stream: Stream, residency: Residency) -> Stream:
    """The same from an empty cache, counted in the last group, which is none of those asked for."""
    emptied = stream.reset.copy()
    emptied[0] = True
    return stream._replace(group=np.full_like(stream.group, residency.counts.shape[1] - 1), reset=emptied)


@compiled
def _early(stream, begin, slots, seen):
    """The last pass before `begin` from which on so many different experts are asked for, or at which the
    cache is emptied; -1 if there is none.
    """
    different = 0
    for place in range(begin - 1, -1, -1):
        for at in range(
            stream.starts[place * stream.requests_per_pass],
            stream.starts[(place + 1) * stream.requests_per_pass],
        ):
            different += not seen[stream.ids[at]]
            seen[stream.ids[at]] = True
        if different >= slots or stream.reset[place]:
            return place
    return -1


@compiled
def _touch(stream, touched):
    """Marks what a stream asks for after its last reset."""
    for place in range(len(stream.group)):
        if stream.reset[place]:
            touched[:] = False
        for at in range(
            stream.starts[place * stream.requests_per_pass],
            stream.starts[(place + 1) * stream.requests_per_pass],
        ):
            touched[stream.ids[at]] = True
