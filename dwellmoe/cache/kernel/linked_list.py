"""Doubly linked rings of experts: one leaves from any position, or joins as the newest, in constant time.

One row of every array is one cache. Ring r starts and ends at the node E + r; the oldest member comes first.
"""

from typing import NamedTuple

import numpy as np

from dwellmoe.cache.kernel.jit import helper, index_type


class LinkedList(NamedTuple):
    """Rings over the same experts: an expert is in at most one of them."""

    older: np.ndarray  # int [caches, E + rings]
    newer: np.ndarray  # int [caches, E + rings]
    rings: int

    @classmethod
    def allocate(cls, caches: int, experts: int, rings: int) -> "LinkedList":
        shape = (caches, experts + rings)
        return cls(np.zeros(shape, index_type(shape[1])), np.zeros(shape, index_type(shape[1])), rings)


@helper
def clear(links, cache):
    """Makes every ring empty."""
    nodes = links.older.shape[1]
    for node in range(nodes - links.rings, nodes):
        links.older[cache, node] = node
        links.newer[cache, node] = node


@helper
def head(links, ring):
    """The node at which `ring` starts and ends."""
    return links.older.shape[1] - links.rings + ring


@helper
def unlink(links, cache, expert):
    before, after = links.older[cache, expert], links.newer[cache, expert]
    links.newer[cache, before] = after
    links.older[cache, after] = before


@helper
def append(links, cache, ring, expert):
    """Makes `expert` the newest of `ring`."""
    end = head(links, ring)
    before = links.older[cache, end]
    links.newer[cache, before] = expert
    links.older[cache, expert] = before
    links.newer[cache, expert] = end
    links.older[cache, end] = expert


@helper
def first_unprotected(links, cache, ring, protected, now):
    """The oldest of `ring` that this request does not protect; the ring's own node if there is none."""
    end = head(links, ring)
    expert = links.newer[cache, end]
    while expert != end and now.request >= 0 and protected[cache, expert] == now.request:
        expert = links.newer[cache, expert]
    return expert


@helper
def first(links, cache, ring):
    """The oldest of `ring`; the ring's own node if it is empty."""
    return links.newer[cache, head(links, ring)]


@helper
def move(policy, cache, expert, ring):
    """Makes `expert` the newest of `ring` in a policy with `queues`, `where` and `length`.

    A negative ring is none.
    """
    source = policy.where[cache, expert]
    if source >= 0:
        unlink(policy.queues, cache, expert)
        policy.length[cache, source] -= 1
    policy.where[cache, expert] = ring
    if ring >= 0:
        append(policy.queues, cache, ring, expert)
        policy.length[cache, ring] += 1
