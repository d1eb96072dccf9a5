"""Knows the hits of every capacity at once, for policies whose larger cache always holds what the smaller one
does.

Such a policy keeps one list in which the first C experts are what a cache of C holds (Mattson, Gecsei, Slutz,
Traiger 1970, "Evaluation techniques for storage hierarchies"). Here a whole request moves to the front
together, which is what an atomic step does to every capacity that can hold the request. Does not know
budgets. One row of every array is one cache.
"""

import functools
from typing import NamedTuple

import numpy as np

from dwellmoe.cache.access import Stream
from dwellmoe.cache.kernel.jit import bound, compiled_for, helper, label_of
from dwellmoe.cache.policies.base import NEVER, AccessTime, Shape, parse_policy, reset_of
from dwellmoe.cache.replay.sweep import Lanes

NEW = 0  # column of the first uses; i + 1 is that of uses which capacity i is the least to hit


class Stack(NamedTuple):
    order: np.ndarray  # int32 [caches, E]: the list
    held: np.ndarray  # int64 [caches]: its length
    guard: np.ndarray  # int64 [caches, E]: the last request that asked for an expert
    used: np.ndarray  # int64 [caches, E]: sequence number of the last use, 0 for none since the last reset
    asked: np.ndarray  # int32 [caches, E]: the experts of one request
    pool: np.ndarray  # int32 [caches, E]: pushed out of the caches looked at so far, the best last
    book: np.ndarray  # int64 [caches, 2]: accesses so far, requests so far
    column: np.ndarray  # int64 [E + 1]: where a use at this depth of the list is counted
    depths: np.ndarray  # int64 [layers, groups, C + 2]

    @classmethod
    def allocate(cls, caches: int, experts: int, layers: int, groups: int, capacities: list[int]) -> "Stack":
        shape = (caches, experts)
        order, asked, pool = (np.zeros(shape, np.int32) for _ in range(3))
        guard, used = np.zeros(shape, np.int64), np.zeros(shape, np.int64)
        held, book = np.zeros(caches, np.int64), np.zeros((caches, 2), np.int64)
        column = np.append(NEW, 1 + np.searchsorted(capacities, np.arange(1, experts + 1)))
        depths = np.zeros((layers, groups, len(capacities) + 2), np.int64)
        return cls(order, held, guard, used, asked, pool, book, column, depths)


SEQ, STEP = range(2)


class StackRun:
    """One stack policy at many capacities (in slots, rising), fed with requests."""

    def __init__(self, spec: str, lanes: Lanes, capacities: list[int]) -> None:
        policy, options = parse_policy(spec)
        shape = (lanes.number, lanes.experts)
        self.spec = spec
        self.needs_future = policy.lookahead != "none"
        self.sequential = lanes.convention.access == "sequential"
        self.stack = Stack.allocate(*shape, lanes.trace.layers, lanes.groups, capacities)
        self.policy = policy.allocate(
            Shape(*shape, np.full(lanes.number, lanes.experts), lanes.trace.layers), **options
        )
        self.run = stack_for(policy)

    def feed(self, lane: int, stream: Stream) -> None:
        self.run(self.policy, self.stack, lane, stream, self.sequential)

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
    for request in range(len(stream.starts) - 1):
        first, last = stream.starts[request], stream.starts[request + 1]
        place = request // stream.requests_per_pass
        depths = stack.depths[stream.layer + request - place * stream.requests_per_pass, stream.group[place]]
        if stream.reset[place] and request == place * stream.requests_per_pass:
            stack.held[cache] = 0
            stack.used[cache, :] = 0
            reset(policy, cache)
        width = 1 if sequential else max(1, last - first)
        for at in range(first, last, width):
            move_up(policy, stack, cache, stream, at, at + width, stream.step + place, depths)


@helper
def protect(stack, cache, ids, first, last, depths):
    """Writes a request's experts to `stack.asked`, each once; returns their number. What is asked for again
    hits.
    """
    stack.book[cache, STEP] += 1
    different = 0
    for at in range(first, last):
        if stack.guard[cache, ids[at]] == stack.book[cache, STEP]:
            depths[stack.column[1]] += 1
        else:
            stack.guard[cache, ids[at]] = stack.book[cache, STEP]
            stack.asked[cache, different] = ids[at]
            different += 1
    return different


def move_up_by_recency(policy, stack, cache, stream, first, last, tick, depths):
    """Least recently used: an expert lies as deep as there are experts used since."""
    used = stack.used[cache]
    for place in range(protect(stack, cache, stream.ids, first, last, depths)):
        mine = used[stack.asked[cache, place]]
        depth = 1
        for expert in range(len(used)):
            depth += used[expert] > mine
        depths[stack.column[depth] if mine > 0 else NEW] += 1
    for at in range(first, last):
        stack.book[cache, SEQ] += 1
        used[stream.ids[at]] = stack.book[cache, SEQ]


def move_up(policy, stack, cache, stream, first, last, tick, depths):
    """Any score: a capacity keeps the request and the best of what it held; its leavings are the next larger
    one's.
    """
    order, pool, held = stack.order[cache], stack.pool[cache], stack.held[cache]
    asked = protect(stack, cache, stream.ids, first, last, depths)
    now = AccessTime(stack.book[cache, SEQ], tick, stack.book[cache, STEP], NEVER)
    found = pooled = at = 0
    while at < held and found < asked:
        if stack.guard[cache, order[at]] == now.request:
            depths[stack.column[at + 1]] += 1
            found += 1
        else:
            join(policy, stack, cache, order[at], pooled, now)
            pooled += 1
        if at >= asked:
            pooled -= 1
            order[at] = pool[pooled]
        at += 1
    depths[NEW] += asked - found
    stack.held[cache] = held + asked - found
    for place in range(max(held, asked), held + asked - found):
        pooled -= 1
        order[place] = pool[pooled]
    for place in range(asked):
        order[place] = stack.asked[cache, place]
    take(policy, stack, cache, stream, first, last, tick)


def join(policy, stack, cache, expert, pooled, now):
    """Puts `expert` where it belongs in the pool, which holds `pooled` experts, the best last; ties by last
    use.
    """
    pool, used = stack.pool[cache], stack.used[cache]
    worth = score(policy, cache, expert, now)
    at = pooled
    while at > 0:
        above = score(policy, cache, pool[at - 1], now)
        if above < worth or (above == worth and used[pool[at - 1]] < used[expert]):
            break
        pool[at] = pool[at - 1]
        at -= 1
    pool[at] = expert


def take(policy, stack, cache, stream, first, last, tick):
    """Tells the policy of the uses."""
    for at in range(first, last):
        expert = stream.ids[at]
        stack.book[cache, SEQ] += 1
        following = stream.next_use[at] if len(stream.next_use) > 0 else NEVER
        now = AccessTime(stack.book[cache, SEQ], tick, stack.book[cache, STEP], following)
        record(policy, cache, expert, stack.used[cache, expert] == 0, now)
        stack.used[cache, expert] = stack.book[cache, SEQ]
