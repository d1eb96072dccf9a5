"""Knows how to get hit rates at many capacities out of one pass over a trace; does not know how a step is
decided.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from errors import UserError
from expert_cache.access import Stream
from expert_cache.budget import budget_of, check_room
from expert_cache.convention import Convention
from expert_cache.replay import CacheRun, hit_rate_row
from expert_cache.stack import StackRun, is_stack
from expert_cache.sweep import Lanes, Progress, lanes_of, sweep
from expert_cache.trace import RoutingTrace


def curve(
    trace: RoutingTrace,
    policies: Sequence[str],
    capacities: Sequence[int | str] | None = None,
    *,
    progress: Progress | None = None,
    **convention: str,
) -> list[dict]:
    """One hit-rate row for each policy and capacity, each equal to the `replay` at that capacity.

    Without `capacities`: each from the least that can hold every request (1 with sequential access) to E with
    scope "layer", the multiples of E among them with scope "global". Capacities in slots or percent. One pass
    serves all capacities of a stack policy; the others run a cache for each, all in the same pass over the
    trace. `convention` are fields of `Convention`. UserError as for `replay`.
    """
    lanes = lanes_of(trace, Convention(**convention))
    if not policies:
        raise UserError("curve: name at least one policy")
    slots = _slots(lanes, capacities)
    stacks = {spec: StackRun(spec, lanes) for spec in policies if is_stack(spec)}
    runs = {
        (spec, size): CacheRun(spec, budget_of(trace, lanes.convention.scope, size), lanes)
        for spec in policies
        if spec not in stacks
        for size in slots
    }
    sweep(lanes, [*stacks.values(), *runs.values()], progress)
    return [_row(lanes, spec, size, stacks, runs) for spec in policies for size in slots]


def _slots(lanes: Lanes, capacities: Sequence[int | str] | None) -> list[int]:
    scope, least = lanes.convention.scope, widest_request(lanes)
    if not capacities:
        stride = 1 if scope == "layer" else lanes.trace.num_experts
        return [size for size in range(stride, lanes.experts + 1, stride) if size >= least]
    slots = [budget_of(lanes.trace, scope, size).capacity for size in capacities]
    check_room(min(slots), least)
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
    passes, least = lanes.passes, lanes.convention.least(lanes.trace.top_k)
    if lanes.convention.access == "sequential" or (passes.end - passes.begin).max() == 1:
        return least
    widest = _Widest()
    sweep(replace(lanes, passes=replace(passes, distinct=np.ones(len(passes), np.bool_))), [widest])
    return max(widest.experts, least)


def _row(lanes: Lanes, spec: str, size: int, stacks: dict, runs: dict) -> dict:
    counts = stacks[spec].counts(size) if spec in stacks else runs[spec, size].counts().sum(axis=1)
    return hit_rate_row(spec, budget_of(lanes.trace, lanes.convention.scope, size), lanes, counts)
