"""Replays a trace through one simulated cache: one policy at one capacity."""

from dataclasses import dataclass

import numpy as np

from dwellmoe.cache.access import Stream
from dwellmoe.cache.budget import Budget, budget_of, check_holds, too_small
from dwellmoe.cache.cache_setup import CacheSetup
from dwellmoe.cache.intervals import RESAMPLES
from dwellmoe.cache.kernel.step import DONE, EVICTIONS, MISSES, Residency, advance_for, no_log
from dwellmoe.cache.policies.base import Shape, parse_policy
from dwellmoe.cache.progress import Progress
from dwellmoe.cache.replay.rows import HitRateRow, hit_rate_rows
from dwellmoe.cache.replay.sweep import ReplayInputs, replay_inputs, sweep
from dwellmoe.cache.trace import RoutingTrace
from dwellmoe.errors import UserError


class CacheRun:
    """One policy at one capacity, fed with requests."""

    def __init__(self, spec: str, budget: Budget, inputs: ReplayInputs) -> None:
        policy, options = parse_policy(spec)
        slots = np.full(len(budget.limits), budget.capacity)
        self.spec, self.budget = spec, budget
        self.needs_future = policy.lookahead != "none"
        self.needs_layers = hasattr(policy, "on_layers")
        self.sequential = inputs.setup.access == "sequential"
        self.advance = advance_for(policy)
        shape = Shape(len(slots), len(budget.sizes), slots, inputs.trace.layers)
        self.policy = policy.allocate(shape, **options)
        limits = np.array(budget.limits)
        self.residency = Residency.allocate(limits, budget.sizes, inputs.trace.layers, inputs.groups)

    def feed(self, cache_index: int, stream: Stream) -> None:
        self.advance_by(self.residency, cache_index, stream)

    def advance_by(self, residency: Residency, cache_index: int, stream: Stream) -> None:
        """Takes requests through a cache; `residency` may count them in other groups."""
        request = self.advance(self.policy, residency, cache_index, stream, self.sequential, no_log())
        if request != DONE:
            raise _does_not_fit(stream, request, self.budget)

    def counts(self) -> np.ndarray:
        """int64 [layers, groups, 4]: hits, misses, compulsory misses, evictions, as in `kernel/step.py`."""
        return self.residency.counts[:, :-1]


def _does_not_fit(stream: Stream, request: int, budget: Budget) -> UserError:
    index, layer = divmod(request, stream.requests_per_pass)
    experts = len(np.unique(stream.ids[stream.starts[request] : stream.starts[request + 1]]))
    where = f"layer {stream.layer + layer}, pass {stream.step + index}"
    return too_small(budget.capacity, experts, where)


@dataclass(frozen=True)
class ReplayRow(HitRateRow):
    """The hit-rate row of a single replay."""

    evictions: int
    tokens: int  # counted token steps


def replay(
    trace: RoutingTrace,
    policy: str,
    capacity: int | str,
    *,
    progress: Progress | None = None,
    resamples: int = RESAMPLES,
    **setup: str,
) -> ReplayRow:
    """Replays `trace` through a cache of `capacity` under `policy`.

    policy      name with options, e.g. "lrfu:decay=0.95"
    capacity    slots a layer (scope "layer") or in all (scope "global"), percent ("25%"), or bytes ("6GiB")
    resamples   bootstrap resamples behind each interval; 0: no intervals
    setup       fields of `CacheSetup`
    UserError for an unknown policy or setup, and for a capacity below the experts of one request.
    """
    run, inputs = _run(trace, policy, capacity, CacheSetup(**setup), progress)
    counts = run.counts()
    (row,) = hit_rate_rows(policy, [run.budget], inputs, counts[None], resamples)
    evictions = int(counts[..., EVICTIONS].sum())
    return ReplayRow(**vars(row), evictions=evictions, tokens=int(inputs.tokens().sum()))


def misses_by_request(trace: RoutingTrace, policy: str, capacity: int | str, **setup: str) -> np.ndarray:
    """int64 [R]: misses of each request in the one cache that all went through, by request number.

    Very many requests are counted in groups (see `replay_inputs`). Arguments as for `replay`.
    """
    run, _ = _run(trace, policy, capacity, CacheSetup(**setup))
    return run.counts()[..., MISSES].sum(axis=0)


def _run(
    trace: RoutingTrace,
    policy: str,
    capacity: int | str,
    setup: CacheSetup,
    progress: Progress | None = None,
) -> tuple[CacheRun, ReplayInputs]:
    inputs = replay_inputs(trace, setup, by_request=True)
    budget = budget_of(trace, setup.scope, capacity)
    check_holds(budget.capacity, setup.min_capacity(trace.top_k))
    run = CacheRun(policy, budget, inputs)
    sweep(inputs, [run], progress)
    return run, inputs
