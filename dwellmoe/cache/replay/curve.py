"""Hit rates of several policies at many capacities, out of one pass over a trace."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from dwellmoe.cache.access import Stream
from dwellmoe.cache.budget import Budget, budget_of, check_holds
from dwellmoe.cache.cache_setup import CacheSetup
from dwellmoe.cache.intervals import RESAMPLES
from dwellmoe.cache.kernel.step import MISSES
from dwellmoe.cache.memory import STATE_BYTES, check_memory
from dwellmoe.cache.progress import Progress
from dwellmoe.cache.replay.replay import CacheRun
from dwellmoe.cache.replay.rows import HitRateRow, hit_rate_rows
from dwellmoe.cache.replay.stack import StackRun, is_stack
from dwellmoe.cache.replay.sweep import ReplayInputs, replay_inputs, sweep
from dwellmoe.cache.trace import RoutingTrace
from dwellmoe.errors import UserError

Runs = list[StackRun] | list[CacheRun]


def curve(
    trace: RoutingTrace,
    policies: Sequence[str],
    capacities: Sequence[int | str] | None = None,
    *,
    progress: Progress | None = None,
    resamples: int = RESAMPLES,
    **setup: str,
) -> list[HitRateRow]:
    """One hit-rate row for each policy and capacity, each equal to the `replay` at that capacity.

    capacities  slots or percent. None: every capacity that holds the largest request (1 with sequential
                access), up to E; with scope "global" the multiples of E among them
    resamples   bootstrap resamples behind each interval; 0: no intervals
    setup       fields of `CacheSetup`
    One pass over the trace serves all capacities of a stack policy; other policies run a cache for each
    capacity in that pass. UserError as for `replay`.
    """
    inputs = replay_inputs(trace, CacheSetup(**setup), by_request=True)
    if not policies:
        raise UserError("curve: name at least one policy")
    slots = _slots(inputs, capacities)
    _check_memory(inputs, policies, len(slots))
    budgets = [budget_of(trace, inputs.setup.scope, size) for size in slots]
    runs = {spec: _runs(spec, inputs, slots, budgets) for spec in policies}
    sweep(inputs, [run for found in runs.values() for run in found], progress)
    counts = {spec: _counts(found) for spec, found in runs.items()}
    return [row for spec in policies for row in hit_rate_rows(spec, budgets, inputs, counts[spec], resamples)]


def misses_by_capacity(
    trace: RoutingTrace, policy: str, also: int, **setup: str
) -> tuple[np.ndarray, np.ndarray]:
    """int64 [C]: every capacity as in `curve`, and `also`; int64 [C, R]: the misses of each request at it.

    Very many requests are counted in groups (see `replay_inputs`).
    """
    inputs = replay_inputs(trace, CacheSetup(**setup), by_request=True)
    check_holds(also, widest_request(inputs))
    slots = sorted({*_slots(inputs, None), also})
    _check_memory(inputs, [policy], len(slots))
    runs = _runs(policy, inputs, slots, [budget_of(trace, inputs.setup.scope, size) for size in slots])
    sweep(inputs, runs)
    return np.array(slots), _counts(runs)[..., MISSES].sum(axis=1)


def _check_memory(inputs: ReplayInputs, policies: Sequence[str], capacities: int) -> None:
    caches = sum(1 if is_stack(spec) else capacities for spec in policies)
    state_bytes = caches * STATE_BYTES * inputs.caches * inputs.experts
    size_bytes = capacities * np.dtype(np.int64).itemsize * inputs.experts  # `Budget.sizes`
    check_memory(
        state_bytes + size_bytes,
        f"a curve of {len(policies)} policies at {capacities} capacities of {inputs.experts} experts",
    )


def _runs(spec: str, inputs: ReplayInputs, slots: list[int], budgets: list[Budget]) -> Runs:
    """A stack that serves all capacities, or a cache for each."""
    if is_stack(spec):
        return [StackRun(spec, inputs, slots)]
    return [CacheRun(spec, budget, inputs) for budget in budgets]


def _counts(runs: Runs) -> np.ndarray:
    """int64 [capacities, layers, groups, 3 or more]."""
    counts = [run.counts() for run in runs]
    return counts[0] if isinstance(runs[0], StackRun) else np.stack(counts)


def _slots(inputs: ReplayInputs, capacities: Sequence[int | str] | None) -> list[int]:
    scope = inputs.setup.scope
    smallest = widest_request(inputs)
    if not capacities:
        stride = 1 if scope == "layer" else inputs.trace.num_experts
        return [size for size in range(stride, inputs.experts + 1, stride) if size >= smallest]
    slots = [budget_of(inputs.trace, scope, size).capacity for size in capacities]
    check_holds(min(slots), smallest)
    return sorted(set(slots))


class _Widest:
    """The most experts of one request."""

    needs_future = False

    def __init__(self) -> None:
        self.experts = 0

    def feed(self, cache_index: int, stream: Stream) -> None:
        self.experts = max(self.experts, int(np.diff(stream.starts).max()))


def widest_request(inputs: ReplayInputs) -> int:
    """The smallest capacity that serves every request: K, or a prefill chunk's or batch's experts."""
    passes = inputs.passes
    smallest = inputs.setup.min_capacity(inputs.trace.top_k)
    if inputs.setup.access == "sequential" or (passes.end - passes.begin).max() == 1:
        return smallest
    widest = _Widest()
    sweep(replace(inputs, passes=replace(passes, distinct=np.ones(len(passes), np.bool_))), [widest])
    return max(widest.experts, smallest)
