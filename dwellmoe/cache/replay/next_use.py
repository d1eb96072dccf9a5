"""When the expert of each access is used next, found by walking a stream backwards."""

import numpy as np

from dwellmoe.cache.access import Stream
from dwellmoe.cache.kernel.jit import compiled
from dwellmoe.cache.policies.base import NEVER, STEP_BITS


def next_uses(stream: Stream, upcoming: np.ndarray, sequential: bool) -> np.ndarray:
    """int64 [accesses]: time of each expert's next use, strictly after its request (sequential: its access).

    `upcoming` [E] holds the first use of each expert after the stream; afterwards it holds the first use from
    the stream's start on. A reset hides what comes after it from what came before.
    """
    next_use = np.empty(len(stream.ids), np.int64)
    _next_uses(stream, upcoming, sequential, next_use)
    return next_use


@compiled
def _next_uses(stream, upcoming, sequential, next_use):
    per_pass = stream.requests_per_pass
    for request in range(len(stream.starts) - 2, -1, -1):
        first, last = stream.starts[request], stream.starts[request + 1]
        index = request // per_pass  # of the pass
        step_time = (stream.step + index) << STEP_BITS
        begin = stream.starts[index * per_pass]
        for access in range(last - 1, first - 1, -1):
            expert = stream.ids[access]
            next_use[access] = upcoming[expert]
            if sequential:
                upcoming[expert] = step_time + access - begin
        if not sequential:
            for access in range(first, last):
                upcoming[stream.ids[access]] = step_time + request - index * per_pass
        if request == index * per_pass and stream.reset[index]:
            upcoming[:] = NEVER
