"""Knows how to take a whole trace through any number of simulations, a block at a time; does not know what they count.

A simulation is asked `needs_future` once and fed each lane's requests in order: `feed(lane, stream)`. Lanes are independent,
so they run on all cores; with one lane the simulations do. Nothing is kept of a block but, for the future's sake, the first
use of every expert from its start on.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from expert_cache.access import Passes, Stream, gather
from expert_cache.convention import Convention
from expert_cache.future import look_back, nothing_ahead
from expert_cache.trace import RoutingTrace, release

Progress = Callable[[int, int], None]  # done, of


class Simulation(Protocol):
    needs_future: bool

    def feed(self, lane: int, stream: Stream) -> None:
        """Takes one block of one lane. Called from several threads, but never twice at once for the same lane."""
        ...


@dataclass(frozen=True, eq=False)
class Lanes:
    """What the simulations are told of a trace, and how it is counted."""

    trace: RoutingTrace
    convention: Convention
    passes: Passes
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

    def tokens(self) -> int:
        """Rows of the trace that are counted."""
        return int((self.passes.end - self.passes.begin)[self.counted].sum())


def lanes_of(trace: RoutingTrace, convention: Convention, by_request: bool = False) -> Lanes:
    """How `trace` is replayed under `convention`; counted together, or apart for each request."""
    passes, counted = convention.passes(trace)
    names, index = np.unique(passes.request, return_inverse=True)
    groups = len(names) if by_request else 1
    group = np.where(counted, index if by_request else 0, groups).astype(np.int32)
    return Lanes(trace, convention, passes, counted, group, convention.resets(passes), groups + 1)


def sweep(lanes: Lanes, simulations: Sequence[Simulation], progress: Progress | None = None) -> None:
    """Feeds the whole trace to every simulation."""
    blocks = list(_blocks(lanes))
    needs_future = any(simulation.needs_future for simulation in simulations)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        ahead = _first_uses(lanes, blocks, pool) if needs_future else None
        for number, block in enumerate(blocks):
            streams = _streams(lanes, block, None if ahead is None else ahead[number])
            if lanes.number > 1:
                _run(
                    pool,
                    [
                        (lambda lane=lane: _feed(simulations, lane, streams(lane)))
                        for lane in range(lanes.number)
                    ],
                )
            else:
                only = streams(0)
                _run(pool, [(lambda each=each: each.feed(0, only)) for each in simulations])
            release(lanes.trace.experts)
            if progress:
                progress(block.stop, len(lanes.passes))


def _feed(simulations: Sequence[Simulation], lane: int, stream: Stream) -> None:
    for simulation in simulations:
        simulation.feed(lane, stream)


def _run(pool: ThreadPoolExecutor, tasks: list[Callable]) -> None:
    for done in [pool.submit(task) for task in tasks]:
        done.result()


def _blocks(lanes: Lanes) -> Iterator[range]:
    """Ranges of passes, each about a block of the trace."""
    first_rows = [rows.start for rows in lanes.trace.blocks()]
    edges = np.unique(np.append(np.searchsorted(lanes.passes.begin, first_rows), len(lanes.passes)))
    edges = np.union1d(edges, [0])
    return (range(int(low), int(high)) for low, high in zip(edges[:-1], edges[1:], strict=True))


def _streams(lanes: Lanes, block: range, ahead: np.ndarray | None) -> Callable[[int], Stream]:
    """The streams of one block, made when asked for by lane."""
    part = slice(block.start, block.stop)
    first_row = lanes.passes.begin[block.start]
    begin, end = lanes.passes.begin[part] - first_row, lanes.passes.end[part] - first_row
    experts = lanes.trace.experts[first_row : first_row + end[-1]]
    nothing = np.empty(0, np.int64)

    def stream(lane: int) -> Stream:
        size = (lanes.wide, lanes.trace.num_experts)
        ids, starts = gather(experts, begin, end, lanes.passes.distinct[part], lane, *size)
        made = Stream(
            ids, starts, lanes.group[part], lanes.reset[part], nothing, lanes.wide, lane, block.start
        )
        if ahead is None:
            return made
        return made._replace(
            next_use=look_back(made, ahead[lane].copy(), lanes.convention.access == "sequential")
        )

    return stream


def _first_uses(lanes: Lanes, blocks: list[range], pool: ThreadPoolExecutor) -> np.ndarray:
    """int64 [blocks, lanes, experts]: the first use of each expert after a block, found from the end backwards."""
    ahead = np.empty((len(blocks), lanes.number, lanes.experts), np.int64)
    ahead[-1] = nothing_ahead(lanes.experts)
    for number in range(len(blocks) - 1, 0, -1):
        ahead[number - 1] = ahead[number]
        streams = _streams(lanes, blocks[number], None)
        sequential = lanes.convention.access == "sequential"
        tasks = [
            (lambda lane=lane: look_back(streams(lane), ahead[number - 1, lane], sequential))
            for lane in range(lanes.number)
        ]
        _run(pool, tasks)
        release(lanes.trace.experts)
    return ahead
