"""Hits of every capacity at once, for policies whose larger cache always holds what the smaller one does.

Such a policy keeps one list in which the first C experts are what a cache of C holds (Mattson, Gecsei, Slutz,
Traiger 1970, "Evaluation techniques for storage hierarchies"). Here a whole request moves to the front
together, which is what an atomic step does to every capacity that can hold the request. One row of every
array is one cache.
"""

import functools
from typing import NamedTuple

import numpy as np

from dwellmoe.cache.access import Stream
from dwellmoe.cache.kernel.jit import bound, compiled_for, helper, label_of
from dwellmoe.cache.policies.base import NEVER, AccessTime, Shape, parse_policy, reset_of
from dwellmoe.cache.replay.sweep import ReplayInputs

NEW = 0  # column of the first uses; i + 1 is that of uses which capacity i is the least to hit


class Stack(NamedTuple):
    order: np.ndarray  # int32 [caches, E]: the list
    length: np.ndarray  # int64 [caches]: of the list
    protected: np.ndarray  # int64 [caches, E]: the last request of an expert
    used: np.ndarray  # int64 [caches, E]: sequence number of the last use, 0 for none since the last reset
    requested: np.ndarray  # int32 [caches, E]: the experts of one request
    pool: np.ndarray  # int32 [caches, E]: evicted by the capacities looked at so far, the best last
    clock: np.ndarray  # int64 [caches, 2]: accesses so far, requests so far
    column: np.ndarray  # int64 [E + 1]: where a use at this depth of the list is counted
    depths: np.ndarray  # int64 [layers, groups, C + 2]

    @classmethod
    def allocate(cls, caches: int, experts: int, layers: int, groups: int, capacities: list[int]) -> "Stack":
        shape = (caches, experts)
        return cls(
            order=np.zeros(shape, np.int32),
            length=np.zeros(caches, np.int64),
            protected=np.zeros(shape, np.int64),
            used=np.zeros(shape, np.int64),
            requested=np.zeros(shape, np.int32),
            pool=np.zeros(shape, np.int32),
            clock=np.zeros((caches, 2), np.int64),
            column=np.append(NEW, 1 + np.searchsorted(capacities, np.arange(1, experts + 1))),
            depths=np.zeros((layers, groups, len(capacities) + 2), np.int64),
        )


ACCESS, REQUEST = range(2)  # columns of `clock`


class StackRun:
    """One stack policy at many capacities (in slots, rising), fed with requests."""

    def __init__(self, spec: str, inputs: ReplayInputs, capacities: list[int]) -> None:
        policy, options = parse_policy(spec)
        shape = (inputs.caches, inputs.experts)
        self.spec = spec
        self.needs_future = policy.lookahead != "none"
        self.sequential = inputs.setup.access == "sequential"
        self.stack = Stack.allocate(*shape, inputs.trace.layers, inputs.groups, capacities)
        self.policy = policy.allocate(
            Shape(*shape, np.full(inputs.caches, inputs.experts), inputs.trace.layers), **options
        )
        self.run = stack_for(policy)

    def feed(self, cache_index: int, stream: Stream) -> None:
        self.run(self.policy, self.stack, cache_index, stream, self.sequential)

    def counts(self) -> np.ndarray:
        """int64 [capacities, layers, groups, 3] of what is counted: hits, misses, compulsory misses."""
        depths = np.moveaxis(self.stack.depths[:, :-1], 2, 0)
        hits = depths[1:-1].cumsum(axis=0)
        new = np.broadcast_to(depths[NEW], hits.shape)
        return np.stack([hits, depths.sum(axis=0) - hits, new], axis=-1)


def is_stack(spec: str) -> bool:
    """Whether one pass serves all capacities of this policy."""
    policy, _ = parse_policy(spec)
    return bool(getattr(policy, "is_stack_algorithm", False))


@functools.cache
def stack_for(policy):
    """`stack_hits`, compiled around one policy."""
    if not hasattr(policy, "score"):
        return compiled_for(label_of(policy), stack_hits, move_up=move_up_by_recency, reset=reset_nothing)
    joining, taking = bound(join, score=policy.score), bound(take, record=policy.record)
    moving = bound(move_up, join=joining, take=taking)
    return compiled_for(label_of(policy), stack_hits, move_up=moving, reset=reset_of(policy))


# Bound when `stack_hits` is compiled for a policy.
def record(policy, cache, expert, inserted, now): ...
def score(policy, cache, expert, now) -> float: ...  # type: ignore[empty-body]
def reset(policy, cache): ...
def reset_nothing(policy, cache): ...


def stack_hits(policy, stack, cache, stream, sequential):
    """Takes the requests of `stream` through all capacities; adds to `stack.depths`."""
    per_pass = stream.requests_per_pass
    for request in range(len(stream.starts) - 1):
        first, last = stream.starts[request], stream.starts[request + 1]
        index = request // per_pass  # of the pass
        depths = stack.depths[stream.layer + request - index * per_pass, stream.group[index]]
        if stream.reset[index] and request == index * per_pass:
            stack.length[cache] = 0
            stack.used[cache, :] = 0
            reset(policy, cache)
        width = 1 if sequential else max(1, last - first)
        for begin in range(first, last, width):
            move_up(policy, stack, cache, stream, begin, begin + width, stream.step + index, depths)


@helper
def protect(stack, cache, ids, first, last, depths):
    """Writes a request's experts to `stack.requested`, each once; returns their number. Repeated ones hit."""
    stack.clock[cache, REQUEST] += 1
    distinct = 0
    for access in range(first, last):
        if stack.protected[cache, ids[access]] == stack.clock[cache, REQUEST]:
            depths[stack.column[1]] += 1
        else:
            stack.protected[cache, ids[access]] = stack.clock[cache, REQUEST]
            stack.requested[cache, distinct] = ids[access]
            distinct += 1
    return distinct


def move_up_by_recency(policy, stack, cache, stream, first, last, step, depths):
    """Least recently used: an expert lies as deep as there are experts used since."""
    used = stack.used[cache]
    for i in range(protect(stack, cache, stream.ids, first, last, depths)):
        last_use = used[stack.requested[cache, i]]
        depth = 1
        for expert in range(len(used)):
            depth += used[expert] > last_use
        depths[stack.column[depth] if last_use > 0 else NEW] += 1
    for access in range(first, last):
        stack.clock[cache, ACCESS] += 1
        used[stream.ids[access]] = stack.clock[cache, ACCESS]


def move_up(policy, stack, cache, stream, first, last, step, depths):
    """Any score: a capacity keeps the request and its best experts; the next larger one takes the evicted."""
    order, pool, length = stack.order[cache], stack.pool[cache], stack.length[cache]
    requested = protect(stack, cache, stream.ids, first, last, depths)
    now = AccessTime(stack.clock[cache, ACCESS], step, stack.clock[cache, REQUEST], NEVER)
    found = pooled = depth = 0
    while depth < length and found < requested:
        if stack.protected[cache, order[depth]] == now.request:
            depths[stack.column[depth + 1]] += 1
            found += 1
        else:
            join(policy, stack, cache, order[depth], pooled, now)
            pooled += 1
        if depth >= requested:
            pooled -= 1
            order[depth] = pool[pooled]
        depth += 1
    depths[NEW] += requested - found
    stack.length[cache] = length + requested - found
    for i in range(max(length, requested), length + requested - found):
        pooled -= 1
        order[i] = pool[pooled]
    for i in range(requested):
        order[i] = stack.requested[cache, i]
    take(policy, stack, cache, stream, first, last, step)


def join(policy, stack, cache, expert, pooled, now):
    """Inserts `expert` into the pool of `pooled` experts, the best last; ties by last use."""
    pool, used = stack.pool[cache], stack.used[cache]
    own = score(policy, cache, expert, now)
    i = pooled
    while i > 0:
        other = score(policy, cache, pool[i - 1], now)
        if other < own or (other == own and used[pool[i - 1]] < used[expert]):
            break
        pool[i] = pool[i - 1]
        i -= 1
    pool[i] = expert


def take(policy, stack, cache, stream, first, last, step):
    """Records the uses with the policy."""
    for access in range(first, last):
        expert = stream.ids[access]
        stack.clock[cache, ACCESS] += 1
        following = stream.next_use[access] if len(stream.next_use) > 0 else NEVER
        now = AccessTime(stack.clock[cache, ACCESS], step, stack.clock[cache, REQUEST], following)
        record(policy, cache, expert, stack.used[cache, expert] == 0, now)
        stack.used[cache, expert] = stack.clock[cache, ACCESS]
