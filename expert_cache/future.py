"""Knows when each access's expert is used next; does not know what a policy makes of it."""

import numpy as np

from expert_cache.access import Stream
from expert_cache.compiled import compiled
from expert_cache.policies.base import NEVER, TICK_BITS


@compiled
def look_back(stream: Stream, upcoming, sequential):
    """int64 [accesses]: the moment each expert is used next, strictly after its request (sequential: its
    access).

    `upcoming` [E] holds the first use of each expert after the stream and is left holding the first use from
    its start on. A reset hides what comes after it from what came before.
    """
    next_use = np.empty(len(stream.ids), np.int64)
    for request in range(len(stream.starts) - 2, -1, -1):
        first, last = stream.starts[request], stream.starts[request + 1]
        place = request // stream.wide
        moment = (stream.tick + place) << TICK_BITS
        begin = stream.starts[place * stream.wide]
        for at in range(last - 1, first - 1, -1):
            expert = stream.ids[at]
            next_use[at] = upcoming[expert]
            if sequential:
                upcoming[expert] = moment + at - begin
        if not sequential:
            for at in range(first, last):
                upcoming[stream.ids[at]] = moment + request - place * stream.wide
        if stream.reset[place] and request == place * stream.wide:
            upcoming[:] = NEVER
    return next_use
