"""Hit rates of several policies at many capacities, out of one pass over a trace."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from dwellmoe.cache.access import Stream
from dwellmoe.cache.budget import Budget, budget_of, check_holds
from dwellmoe.cache.cache_setup import CacheSetup
from dwellmoe.cache.intervals import RESAMPLES
from dwellmoe.cache.progress import Progress
from dwellmoe.cache.replay.replay import CacheRun
from dwellmoe.cache.replay.rows import HitRateRow, hit_rate_rows
from dwellmoe.cache.replay.stack import StackRun, is_stack
from dwellmoe.cache.replay.sweep import Lanes, lanes_of, sweep
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
    **convention: str,
) -> list[HitRateRow]:
    """One hit-rate row for each policy and capacity, each equal to the `replay` at that capacity.

    Without `capacities`: each from the least that can hold every request (1 with sequential access) to E with
    scope "layer", the multiples of E among them with scope "global". Capacities in slots or percent. One pass
    serves all capacities of a stack policy; the others run a cache for each, all in the same pass over the
    trace. `resamples` of the requests are behind each interval. `convention` are fields of `CacheSetup`.
    UserError as for `replay`.
    """
    lanes = lanes_of(trace, CacheSetup(**convention), by_request=True)
    if not policies:
        raise UserError("curve: name at least one policy")
    slots = _slots(lanes, capacities)
    budgets = [budget_of(trace, lanes.convention.scope, size) for size in slots]
    runs = {spec: _runs(spec, lanes, slots, budgets) for spec in policies}
    sweep(lanes, [run for found in runs.values() for run in found], progress)
    counts = {spec: _counts(found) for spec, found in runs.items()}
    return [row for spec in policies for row in hit_rate_rows(spec, budgets, lanes, counts[spec], resamples)]


def _runs(spec: str, lanes: Lanes, slots: list[int], budgets: list[Budget]) -> Runs:
    """What is fed for one policy: a stack that serves all capacities, or a cache for each."""
    if is_stack(spec):
        return [StackRun(spec, lanes, slots)]
    return [CacheRun(spec, budget, lanes) for budget in budgets]


def _counts(runs: Runs) -> np.ndarray:
    """int64 [capacities, layers, groups, 3 or more]."""
    counts = [run.counts() for run in runs]
    return counts[0] if isinstance(runs[0], StackRun) else np.stack(counts)


def _slots(lanes: Lanes, capacities: Sequence[int | str] | None) -> list[int]:
    scope, least = lanes.convention.scope, widest_request(lanes)
    if not capacities:
        stride = 1 if scope == "layer" else lanes.trace.num_experts
        return [size for size in range(stride, lanes.experts + 1, stride) if size >= least]
    slots = [budget_of(lanes.trace, scope, size).capacity for size in capacities]
    check_holds(min(slots), least)
    return sorted(set(slots))


class _Widest:
    """The most experts that one request asks for."""

    needs_future = False

    def __init__(self) -> None:
        self.experts = 0

    def feed(self, lane: int, stream: Stream) -> None:
        self.experts = max(self.experts, int(np.diff(stream.starts).max()))


def widest_request(lanes: Lanes) -> int:
    """The least capacity that the convention allows: K, or the largest union of a prefill chunk or decode
    batch.
    """
    passes, least = lanes.passes, lanes.convention.min_capacity(lanes.trace.top_k)
    if lanes.convention.access == "sequential" or (passes.end - passes.begin).max() == 1:
        return least
    widest = _Widest()
    sweep(replace(lanes, passes=replace(passes, distinct=np.ones(len(passes), np.bool_))), [widest])
    return max(widest.experts, least)
