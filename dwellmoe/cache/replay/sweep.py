"""Takes a whole trace through any number of simulations, a block at a time.

A simulation is fed the requests of each cache in order. Caches are independent, so they run on all cores;
with one cache the simulations do. Nothing is kept of a block but, for policies that look ahead, the first use
of every expert from its start on.
"""

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise
from typing import Protocol

import numpy as np

from dwellmoe.cache import trace as trace_module
from dwellmoe.cache.access import PassIndex, Stream, gather, layer_ids_of, no_layer_ids
from dwellmoe.cache.cache_setup import CacheSetup
from dwellmoe.cache.memory import STATE_BYTES, check_memory
from dwellmoe.cache.policies.base import NEVER
from dwellmoe.cache.progress import Progress
from dwellmoe.cache.replay.next_use import next_uses
from dwellmoe.cache.trace import RoutingTrace, release

PARTS = 32  # of a block: small ones stay in the processor's caches, but each costs a call
MOST_GROUPS = 1024  # requests counted apart: what is counted stays small beside what is mapped
FUTURE_PARTS = 4  # of a block, where one cache gets all of its requests and each access carries its next use


class Simulation(Protocol):
    """May have `needs_layers`: whether its streams say what other layers requested."""

    needs_future: bool

    def feed(self, cache_index: int, stream: Stream) -> None:
        """Takes one block of one cache. Called from several threads, but never for one cache at once."""
        ...


@dataclass(frozen=True, eq=False)
class ReplayInputs:
    """A trace as the simulations take it: its passes, their caches, and how they are counted."""

    trace: RoutingTrace
    setup: CacheSetup
    passes: PassIndex
    group: np.ndarray  # int32 [passes]; the last group is what is not counted
    reset: np.ndarray  # bool [passes]
    groups: int

    @property
    def caches(self) -> int:
        return self.trace.layers if self.setup.scope == "layer" else 1

    @property
    def requests_per_pass(self) -> int:
        """Layers that one cache serves."""
        return self.trace.layers // self.caches

    @property
    def experts(self) -> int:
        """Experts that one cache serves."""
        return self.requests_per_pass * self.trace.num_experts

    def tokens(self) -> np.ndarray:
        """int64 [groups - 1]: rows of the trace that are counted."""
        rows = np.zeros(self.groups, np.int64)
        np.add.at(rows, self.group, self.passes.end - self.passes.begin)
        return rows[:-1]


def replay_inputs(trace: RoutingTrace, setup: CacheSetup, by_request: bool = False) -> ReplayInputs:
    """How `trace` is replayed with `setup`; counted together, or apart for each request.

    More requests than `MOST_GROUPS` are counted in so many groups of whole requests.
    """
    experts = trace.layers * trace.num_experts
    check_memory(STATE_BYTES * experts, f"a cache for {trace.layers} layers x {trace.num_experts} experts")
    passes, counted = setup.passes(trace)
    names, index = np.unique(passes.request, return_inverse=True)
    groups = min(len(names), MOST_GROUPS if by_request else 1)
    group = np.where(counted, index * groups // len(names), groups).astype(np.int32)
    return ReplayInputs(trace, setup, passes, group, setup.resets(passes), groups + 1)


def sweep(inputs: ReplayInputs, simulations: Sequence[Simulation], progress: Progress | None = None) -> None:
    """Feeds the whole trace to every simulation."""
    needs_future = any(simulation.needs_future for simulation in simulations)
    needs_layers = any(getattr(simulation, "needs_layers", False) for simulation in simulations)
    parts = PARTS if not needs_future else FUTURE_PARTS if inputs.caches == 1 else 1
    blocks = list(_blocks(inputs, parts))
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        after = _first_uses(inputs, blocks, pool) if needs_future else [None] * len(blocks)
        for block, first_uses in zip(blocks, after, strict=True):
            layer_ids = _layer_ids(inputs, block) if needs_layers else None
            _feed(inputs, simulations, _Block(inputs, block, first_uses, layer_ids), pool)
            release(inputs.trace.experts)
            if progress:
                progress(block.stop, len(inputs.passes))


def _feed(
    inputs: ReplayInputs, simulations: Sequence[Simulation], block: "_Block", pool: ThreadPoolExecutor
) -> None:
    def feed_cache(cache_index: int) -> None:
        stream = block.stream(cache_index)
        for simulation in simulations:
            simulation.feed(cache_index, stream)

    if inputs.caches > 1:
        _wait_for(pool.map(feed_cache, range(inputs.caches)))
    else:
        stream = block.stream(0)
        _wait_for(pool.map(lambda simulation: simulation.feed(0, stream), simulations))


def _wait_for(results: Iterator) -> None:
    """Waits for every result, and raises the first error."""
    for _ in results:
        pass


def _blocks(inputs: ReplayInputs, parts: int) -> Iterator[range]:
    """Ranges of passes, each about a block of the trace, or one of `parts` of it."""
    first_rows = np.arange(0, inputs.trace.steps, inputs.trace.rows_in(trace_module.BLOCK_BYTES // parts))
    edges = {*np.searchsorted(inputs.passes.begin, first_rows).tolist(), 0, len(inputs.passes)}
    return (range(low, high) for low, high in pairwise(sorted(edges)))


class _Block:
    """One block of passes, which makes the stream of each cache."""

    def __init__(
        self,
        inputs: ReplayInputs,
        passes: range,
        first_uses: np.ndarray | None = None,
        layer_ids: np.ndarray | None = None,
    ) -> None:
        part = slice(passes.start, passes.stop)
        first_row = inputs.passes.begin[passes.start]
        self.inputs, self.part, self.first_uses = inputs, part, first_uses
        self.begin, self.end = inputs.passes.begin[part] - first_row, inputs.passes.end[part] - first_row
        self.experts = inputs.trace.experts[first_row : first_row + self.end[-1]]
        self.layer_ids = no_layer_ids() if layer_ids is None else layer_ids

    def stream(self, cache_index: int) -> Stream:
        plain = self.stream_without_future(cache_index)
        if self.first_uses is None:
            return plain
        return plain._replace(next_use=self.next_uses(plain, self.first_uses[cache_index].copy()))

    def stream_without_future(self, cache_index: int) -> Stream:
        inputs, part, per_pass = self.inputs, self.part, self.inputs.requests_per_pass
        distinct, experts = inputs.passes.distinct[part], inputs.trace.num_experts
        ids, starts = gather(self.experts, self.begin, self.end, distinct, cache_index, per_pass, experts)
        nothing = np.empty(0, np.int64)
        return Stream(
            ids,
            starts,
            inputs.group[part],
            inputs.reset[part],
            nothing,
            per_pass,
            cache_index,
            part.start,
            self.layer_ids,
        )

    def pass_back(self, cache_index: int, upcoming: np.ndarray) -> None:
        """Turns the first uses after the block into those from its start on."""
        self.next_uses(self.stream_without_future(cache_index), upcoming)

    def next_uses(self, stream: Stream, upcoming: np.ndarray) -> np.ndarray:
        return next_uses(stream, upcoming, self.inputs.setup.access == "sequential")


def _layer_ids(inputs: ReplayInputs, passes: range) -> np.ndarray:
    """`Stream.layer_ids` of a block: of its passes and of the one before."""
    first, index = max(0, passes.start - 1), inputs.passes
    begin, end = index.begin[first : passes.stop], index.end[first : passes.stop]
    experts, layers = inputs.trace.experts[begin[0] : end[-1]], inputs.trace.layers
    row, distinct = begin[0], index.distinct[first : passes.stop]
    ids, starts = gather(experts, begin - row, end - row, distinct, 0, layers, inputs.trace.num_experts)
    return layer_ids_of(ids, starts, layers, inputs.trace.num_experts, missing=int(passes.start == 0))


def _first_uses(inputs: ReplayInputs, blocks: list[range], pool: ThreadPoolExecutor) -> np.ndarray:
    """int64 [blocks, caches, experts]: the first use of each expert after a block, from the end backwards."""
    after = np.full((len(blocks), inputs.caches, inputs.experts), NEVER, np.int64)
    for i in range(len(blocks) - 1, 0, -1):
        after[i - 1] = after[i]
        _wait_for(pool.map(_Block(inputs, blocks[i]).pass_back, range(inputs.caches), after[i - 1]))
        release(inputs.trace.experts)
    return after
