"""Knows when each access's expert is used next; does not know what a policy makes of it."""

import numpy as np

from dwellmoe.cache.access import Stream
from dwellmoe.cache.kernel.jit import compiled
from dwellmoe.cache.policies.base import NEVER, STEP_BITS


def look_back(stream: Stream, upcoming: np.ndarray, sequential: bool) -> np.ndarray:
    """int64 [accesses]: the moment each expert is used next, strictly after its request (sequential: its
    access).

    `upcoming` [E] holds the first use of each expert after the stream and is left holding the first use from
    its start on. A reset hides what comes after it from what came before.
    """
    next_use = np.empty(len(stream.ids), np.int64)
    _look_back(stream, upcoming, sequential, next_use)
    return next_use


@compiled
def _look_back(stream, upcoming, sequential, next_use):
    place, turn = len(stream.group) - 1, stream.requests_per_pass
    for request in range(len(stream.starts) - 2, -1, -1):
        first, last = stream.starts[request], stream.starts[request + 1]
        if turn == 0:
            place, turn = place - 1, stream.requests_per_pass
        turn -= 1
        moment = (stream.step + place) << STEP_BITS
        begin = stream.starts[place * stream.requests_per_pass]
        for at in range(last - 1, first - 1, -1):
            expert = stream.ids[at]
            next_use[at] = upcoming[expert]
            if sequential:
                upcoming[expert] = moment + at - begin
        if not sequential:
            for at in range(first, last):
                upcoming[stream.ids[at]] = moment + turn
        if turn == 0 and stream.reset[place]:
            upcoming[:] = NEVER
