"""Which experts were resident in each layer's cache before each token step.

Letters: S token steps, L layers, E routed experts a layer.
"""

import functools

import numpy as np

from dwellmoe.cache.access import Stream
from dwellmoe.cache.budget import budget_of, layer_slots
from dwellmoe.cache.cache_setup import CacheSetup
from dwellmoe.cache.kernel.jit import compiled_for, label_of
from dwellmoe.cache.kernel.step import DONE, advance_for, no_log
from dwellmoe.cache.policies.base import parse_policy
from dwellmoe.cache.replay.replay import CacheRun
from dwellmoe.cache.replay.sweep import replay_inputs, sweep
from dwellmoe.cache.trace import RoutingTrace


def residents_before(
    trace: RoutingTrace, policy: str, capacity: int | str, *, reset: str = "never"
) -> np.ndarray:
    """bool [S, L, E]: experts resident before each step of `trace` (decode alone, a cache a layer, atomic).

    `capacity` and `reset` as in `replay`; the cache holds K experts at least.
    """
    inputs = replay_inputs(trace, CacheSetup(reset=reset))
    budget = budget_of(trace, "layer", layer_slots(trace, capacity))
    before_LSE = np.zeros((trace.layers, trace.steps, trace.num_experts), np.bool_)
    sweep(inputs, [_Watch(CacheRun(policy, budget, inputs), before_LSE)])
    return before_LSE.transpose(1, 0, 2)


class _Watch:
    """A cache run that also writes down the residents before each step."""

    def __init__(self, run: CacheRun, before_LSE: np.ndarray) -> None:
        self.needs_future, self.needs_layers = run.needs_future, run.needs_layers
        self._run, self._before_LSE = run, before_LSE
        self._watch = _watch_for(parse_policy(run.spec)[0])

    def feed(self, cache_index: int, stream: Stream) -> None:
        run = self._run
        before_SE = self._before_LSE[cache_index, stream.step :]
        done = self._watch(run.policy, run.residency, cache_index, stream, no_log(), before_SE)
        assert done == DONE, "a cache of K slots or more serves every step of a trace"


# Bound when `watch` is compiled for a policy.
def advance(policy, residency, cache, stream, sequential, log): ...


def watch(policy, residency, cache, stream, log, before_SE):
    """Atomic `advance`, one request at a time; a cache that is emptied first has no residents before."""
    for i in range(len(stream.starts) - 1):
        one = Stream(
            stream.ids,
            stream.starts[i : i + 2],
            stream.group[i : i + 1],
            stream.reset[i : i + 1],
            stream.next_use,
            1,
            stream.layer,
            stream.step + i,
            stream.layer_ids[i : i + 2],
        )
        for expert in range(before_SE.shape[1]):
            before_SE[i, expert] = residency.resident[cache, expert] and not stream.reset[i]
        if advance(policy, residency, cache, one, False, log) != DONE:
            return i
    return DONE


@functools.cache
def _watch_for(policy):
    return compiled_for(label_of(policy), watch, advance=advance_for(policy))
