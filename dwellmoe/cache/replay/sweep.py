"""Knows how to take a whole trace through any number of simulations, a block at a time; does not know what
they count.

A simulation is asked `needs_future` once and fed each lane's requests in order: `feed(lane, stream)`. Lanes
are independent, so they run on all cores; with one lane the simulations do. Nothing is kept of a block but,
for the future's sake, the first use of every expert from its start on.
"""

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise
from typing import Protocol

import numpy as np

from dwellmoe.cache import trace as trace_module
from dwellmoe.cache.access import PassIndex, Stream, gather
from dwellmoe.cache.cache_setup import CacheSetup
from dwellmoe.cache.policies.base import NEVER
from dwellmoe.cache.progress import Progress
from dwellmoe.cache.replay.future import look_back
from dwellmoe.cache.trace import RoutingTrace, release

PARTS = 32  # of a block: small ones stay in the processor's caches, but each costs a look ahead
MOST_APART = 1024  # requests counted apart: what is counted stays small beside what is mapped
FUTURE_PARTS = 4  # of a block, where one cache is asked for all of it and each access carries its next use


class Simulation(Protocol):
    needs_future: bool

    def feed(self, lane: int, stream: Stream) -> None:
        """Takes one block of one lane. Called from several threads, but never twice at once for the same
        lane.
        """
        ...


@dataclass(frozen=True, eq=False)
class Lanes:
    """What the simulations are told of a trace, and how it is counted."""

    trace: RoutingTrace
    convention: CacheSetup
    passes: PassIndex
    counted: np.ndarray  # bool [passes]
    group: np.ndarray  # int32 [passes]; the last group is what is not counted
    reset: np.ndarray  # bool [passes]
    groups: int

    @property
    def number(self) -> int:
        return self.trace.layers if self.convention.scope == "layer" else 1

    @property
    def wide(self) -> int:
        """Layers a lane asks in one pass."""
        return self.trace.layers // self.number

    @property
    def experts(self) -> int:
        """Experts a lane may ask for."""
        return self.wide * self.trace.num_experts

    def tokens(self) -> np.ndarray:
        """int64 [groups - 1]: rows of the trace that are counted."""
        rows = np.zeros(self.groups, np.int64)
        np.add.at(rows, self.group, self.passes.end - self.passes.begin)
        return rows[:-1]


def lanes_of(trace: RoutingTrace, convention: CacheSetup, by_request: bool = False) -> Lanes:
    """How `trace` is replayed under `convention`; counted together, or apart for each request.

    More requests than `MOST_APART` are counted in so many bundles of whole requests.
    """
    passes, counted = convention.passes(trace)
    names, index = np.unique(passes.request, return_inverse=True)
    groups = min(len(names), MOST_APART if by_request else 1)
    group = np.where(counted, index * groups // len(names), groups).astype(np.int32)
    return Lanes(trace, convention, passes, counted, group, convention.resets(passes), groups + 1)


def sweep(lanes: Lanes, simulations: Sequence[Simulation], progress: Progress | None = None) -> None:
    """Feeds the whole trace to every simulation."""
    needs_future = any(simulation.needs_future for simulation in simulations)
    parts = PARTS if not needs_future else FUTURE_PARTS if lanes.number == 1 else 1
    blocks = list(_blocks(lanes, parts))
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        ahead = _first_uses(lanes, blocks, pool) if needs_future else [None] * len(blocks)
        for block, first_uses in zip(blocks, ahead, strict=True):
            _feed(lanes, simulations, _Block(lanes, block, first_uses), pool)
            release(lanes.trace.experts)
            if progress:
                progress(block.stop, len(lanes.passes))


def _feed(lanes: Lanes, simulations: Sequence[Simulation], block: "_Block", pool: ThreadPoolExecutor) -> None:
    def feed_lane(lane: int) -> None:
        stream = block.stream(lane)
        for simulation in simulations:
            simulation.feed(lane, stream)

    if lanes.number > 1:
        _all(pool.map(feed_lane, range(lanes.number)))
    else:
        stream = block.stream(0)
        _all(pool.map(lambda simulation: simulation.feed(0, stream), simulations))


def _all(results: Iterator) -> None:
    """Waits for every result, and raises the first error."""
    for _ in results:
        pass


def _blocks(lanes: Lanes, parts: int) -> Iterator[range]:
    """Ranges of passes, each about a block of the trace, or one of `parts` of it."""
    first_rows = np.arange(0, lanes.trace.steps, lanes.trace.rows_in(trace_module.BLOCK_BYTES // parts))
    edges = {*np.searchsorted(lanes.passes.begin, first_rows).tolist(), 0, len(lanes.passes)}
    return (range(low, high) for low, high in pairwise(sorted(edges)))


class _Block:
    """One block of passes; makes each lane's stream when asked for it."""

    def __init__(self, lanes: Lanes, passes: range, first_uses: np.ndarray | None) -> None:
        part = slice(passes.start, passes.stop)
        first_row = lanes.passes.begin[passes.start]
        self.lanes, self.part, self.first_uses = lanes, part, first_uses
        self.begin, self.end = lanes.passes.begin[part] - first_row, lanes.passes.end[part] - first_row
        self.experts = lanes.trace.experts[first_row : first_row + self.end[-1]]

    def stream(self, lane: int) -> Stream:
        plain = self.plain_stream(lane)
        if self.first_uses is None:
            return plain
        return plain._replace(next_use=self.look_back(plain, self.first_uses[lane].copy()))

    def plain_stream(self, lane: int) -> Stream:
        """The stream without its future."""
        lanes, part, wide = self.lanes, self.part, self.lanes.wide
        distinct, experts = lanes.passes.distinct[part], lanes.trace.num_experts
        ids, starts = gather(self.experts, self.begin, self.end, distinct, lane, wide, experts)
        nothing = np.empty(0, np.int64)
        return Stream(ids, starts, lanes.group[part], lanes.reset[part], nothing, wide, lane, part.start)

    def pass_back(self, lane: int, upcoming: np.ndarray) -> None:
        """Turns the first uses after the block into those from its start on."""
        self.look_back(self.plain_stream(lane), upcoming)

    def look_back(self, stream: Stream, upcoming: np.ndarray) -> np.ndarray:
        return look_back(stream, upcoming, self.lanes.convention.access == "sequential")


def _first_uses(lanes: Lanes, blocks: list[range], pool: ThreadPoolExecutor) -> np.ndarray:
    """int64 [blocks, lanes, experts]: the first use of each expert after a block, found from the end
    backwards.
    """
    ahead = np.full((len(blocks), lanes.number, lanes.experts), NEVER, np.int64)
    for number in range(len(blocks) - 1, 0, -1):
        ahead[number - 1] = ahead[number]
        _all(pool.map(_Block(lanes, blocks[number], None).pass_back, range(lanes.number), ahead[number - 1]))
        release(lanes.trace.experts)
    return ahead
