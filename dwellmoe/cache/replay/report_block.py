"""The reporting block: what must be stated beside a hit rate, after the checklist of arXiv 2608.07911.

What a trace does not record is None here, and "not recorded" in print.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from dwellmoe.cache.access import PHASES
from dwellmoe.cache.budget import Budget, budget_of, check_holds, layer_slots
from dwellmoe.cache.cache_setup import CacheSetup
from dwellmoe.cache.intervals import RESAMPLES
from dwellmoe.cache.learned.weights import fit_source
from dwellmoe.cache.policies.base import parse_policy
from dwellmoe.cache.progress import Progress
from dwellmoe.cache.replay.curve import widest_request
from dwellmoe.cache.replay.expert_overlap import expert_overlaps
from dwellmoe.cache.replay.gap import BASELINES, OPTIMUM, gap_shares
from dwellmoe.cache.replay.memory_equivalent import memory_equivalent
from dwellmoe.cache.replay.negative_results import negative_results
from dwellmoe.cache.replay.replay import replay
from dwellmoe.cache.replay.rows import HitRateRow, hit_rate_rows
from dwellmoe.cache.replay.step_misses import StepExperts, StepMisses, mean_of, quantiles
from dwellmoe.cache.replay.sweep import ReplayInputs, replay_inputs, sweep
from dwellmoe.cache.replay.texts import Texts, requests_beyond_shared_prefix, text_rows
from dwellmoe.cache.trace import DECODE, RoutingTrace

FORCED = "opt_forced"
REFERENCES = {"atomic": (*BASELINES, OPTIMUM), "sequential": (*BASELINES, OPTIMUM, FORCED)}
"""Always replayed: the gaps are between them. With atomic access `opt_forced` is `opt`."""
POLICIES = ("lrfu:decay=0.95", "ml_habits")
SHARE = "25%"
UNITS = {
    "atomic": "a layer's whole set at once",
    "sequential": "one expert after the other",
}
RETENTION = {
    "atomic": "once for the whole set: none of its experts leaves while it is served",
    "sequential": "at every single expert: an earlier one of the set may leave for a later one",
}
ORDER = {
    "atomic": "router order, largest weight first; it only settles which use was the last",
    "sequential": "router order, largest weight first",
}
SCOPES = {
    "layer": "a cache for each layer, all with equally many slots",
    "global": "one cache for all layers",
}
REMAINDER = "a share or bytes are rounded down to whole slots; the rest of the budget stays unused"
REMAINDER_BYTES = "bytes are kept to the byte; a share is rounded down to whole slots"


def report_block(
    trace: RoutingTrace,
    policies: Sequence[str] = POLICIES,
    capacities: Sequence[int | str] | None = None,
    *,
    against: RoutingTrace | None = None,
    progress: Progress | None = None,
    resamples: int = RESAMPLES,
    **setup: str,
) -> dict[str, Any]:
    """The block as one JSON object, out of one sweep over the trace and one count of uses.

    policies    replayed beside those of `REFERENCES`
    capacities  slots, percent or bytes. None: 25 %, but at least what the largest step of a layer needs
    against     a trace of the same requests with another routing: adds the LRU cache that it would need for
                as few misses (`memory_equivalent`)
    setup       fields of `CacheSetup`
    UserError as for `replay`.
    """
    inputs = replay_inputs(trace, CacheSetup(**setup), by_request=True)
    budgets = _budgets(inputs, capacities)
    specs = list(dict.fromkeys([*REFERENCES[inputs.setup.access], *policies]))
    experts = StepExperts(inputs)
    runs = [StepMisses(spec, budget, inputs) for budget in budgets for spec in specs]
    sources = {spec: fit_source_of(spec) for spec in specs}
    worth = _memory_equivalents(trace, against, budgets, resamples, setup)
    sweep(inputs, [experts, *runs], progress)
    rows = [_row(run, inputs, resamples) for run in runs]
    texts = Texts.of(trace)
    return {
        "replay": _replay_facts(inputs, budgets, experts),
        "workload": _workload(inputs, texts) | expert_overlaps(trace, texts, inputs.setup.phase),
        "texts": None if texts is None else text_rows(texts),
        "regime": [_regime(experts, budget, inputs) for budget in budgets],
        "policies": [
            _policy_row(run, row, rows, sources[run.spec]) for run, row in zip(runs, rows, strict=True)
        ],
        "gaps": [_gap([row for row in rows if row.capacity == budget.capacity]) for budget in budgets],
        "negative_results": negative_results(runs, resamples),
        "memory_equivalents": worth,
        "compared_with": None if against is None else against.model or None,
    }


def _memory_equivalents(
    trace: RoutingTrace,
    against: RoutingTrace | None,
    budgets: Sequence[Budget],
    resamples: int,
    setup: dict[str, str],
) -> list[dict[str, Any]] | None:
    if against is None:
        return None
    sizes = [budget.capacity for budget in budgets]
    return [memory_equivalent(trace, against, size, resamples=resamples, **setup).as_dict() for size in sizes]


def _budgets(inputs: ReplayInputs, capacities: Sequence[int | str] | None) -> list[Budget]:
    trace, scope = inputs.trace, inputs.setup.scope
    smallest = widest_request(inputs)
    if not capacities:
        layers = 1 if scope == "layer" else trace.layers
        capacities = [max(layer_slots(trace, SHARE) * layers, smallest)]
    found = {budget.capacity: budget for budget in (budget_of(trace, scope, size) for size in capacities)}
    check_holds(min(found), smallest)
    return [found[size] for size in sorted(found)]


def fit_source_of(spec: str) -> dict[str, str] | None:
    """What the weights of a policy were fitted to, as their file says, and whether they change with what the
    trace has shown; None for a policy without weights.
    """
    policy, options = parse_policy(spec)
    layout = getattr(policy, "LAYOUT", None)
    if layout is None:
        return None
    learns = options.get("learning_rate", getattr(policy, "LEARNING_RATE", 0)) > 0
    found = fit_source(options.get("weights", ""), spec.partition(":")[0], layout)
    return found | {"learns_while_running": "yes" if learns else "no"}


def _row(run: StepMisses, inputs: ReplayInputs, resamples: int) -> HitRateRow:
    (row,) = hit_rate_rows(run.spec, [run.budget], inputs, run.counts()[None], resamples)
    return row


def _policy_row(
    run: StepMisses, row: HitRateRow, rows: Sequence[HitRateRow], source: dict[str, str] | None
) -> dict[str, Any]:
    p50, p95, p99 = quantiles(run.misses.counts(), (0.5, 0.95, 0.99))
    found = {name: value for name, value in row.as_dict().items() if not name.startswith("layer_")}
    steps = {"step_misses_p50": p50, "step_misses_p95": p95, "step_misses_p99": p99}
    return found | steps | {"gap_shares": gap_shares(row, rows), "fit_source": source}


def _replay_facts(inputs: ReplayInputs, budgets: Sequence[Budget], experts: StepExperts) -> dict[str, Any]:
    setup = inputs.setup
    of_bytes = any(len(set(budget.sizes.tolist())) > 1 for budget in budgets)
    steps = experts.distinct.counts()
    repeated = int(experts.repeated.sum())
    conformance = replay(conformance_trace(), "lru", 2, resamples=0)
    return setup.fields() | {
        "unit": UNITS[setup.access],
        "retention": RETENTION[setup.access],
        "order": ORDER[setup.access],
        "cache": SCOPES[setup.scope],
        "remainder": REMAINDER_BYTES if of_bytes else REMAINDER,
        "denominator": "accesses: a decoded token's experts in every layer, a prompt chunk's distinct ones",
        "accesses": int(steps @ np.arange(len(steps))) + repeated,
        "steps_of_layers": int(steps.sum()),
        "repeated_accesses": repeated,
        "conformance_hits": conformance.hits,
        "conformance_misses": conformance.misses,
        "conformance_first_uses": conformance.compulsory_misses,
    }


def conformance_trace() -> RoutingTrace:
    """The trace of arXiv 2608.07911 that is checked by hand: with 2 slots, LRU has 12 hits and 18 misses."""
    sets = np.array([[0, 1], [0, 2], [0, 1], [0, 3], [0, 1]], np.uint16)
    experts = np.repeat(sets[:, None, :], 3, axis=1)  # each of three layers asks for the same
    return RoutingTrace(experts, np.full(5, DECODE, np.uint8), np.zeros(5, np.int32), 4)


def _workload(inputs: ReplayInputs, texts: Texts | None) -> dict[str, Any]:
    trace, passes = inputs.trace, inputs.passes
    decoded = trace.phase == DECODE
    steps = (
        np.unique(trace.request[decoded], return_counts=True)[1] if decoded.any() else np.zeros(1, np.int64)
    )
    counted = np.isin(passes.phase, PHASES[inputs.setup.phase])
    together = (passes.end - passes.begin)[counted]
    beyond = None if texts is None else requests_beyond_shared_prefix(texts)
    return {
        "model": trace.model or None,
        "source": trace.source or None,
        "requests": len(np.unique(trace.request)),
        "chat_template": trace.chat_template,
        "decode_steps": int(decoded.sum()),
        "decode_steps_a_request_median": float(np.median(steps)),
        "decode_steps_a_request_most": int(steps.max()),
        "requests_beyond_shared_prefix": beyond,
        "interleaved": _interleaved(trace.request),
        "lock_step_recorded": trace.batch_step is not None,
        "rows_together_mean": float(together.mean()),
        "rows_together_most": int(together.max()),
    }


def _interleaved(request: np.ndarray) -> bool:
    """Whether rows of a request lie apart, with others between."""
    runs = 1 + int((request[1:] != request[:-1]).sum())
    return runs > len(np.unique(request))


def _regime(experts: StepExperts, budget: Budget, inputs: ReplayInputs) -> dict[str, Any]:
    """Distinct experts of a step of a layer over the capacity a layer."""
    slots = budget.capacity / inputs.requests_per_pass
    counts = experts.distinct.counts()
    over = counts[np.arange(len(counts)) > slots].sum() / counts.sum()
    (p95,) = quantiles(counts, (0.95,))
    return {
        "capacity": budget.capacity,
        "capacity_percent": budget.capacity_percent,
        "capacity_bytes": budget.capacity_bytes,
        "distinct_over_capacity_mean": mean_of(counts) / slots,
        "distinct_over_capacity_p95": p95 / slots,
        "distinct_over_capacity_share_above_1": float(over),
    }


def _gap(rows: Sequence[HitRateRow]) -> dict[str, Any]:
    """How far the best policy without knowledge of the future is from the optimum, and why."""
    by_policy = {row.policy: row for row in rows}
    online = [row for row in rows if parse_policy(row.policy)[0].lookahead == "none"]
    best = max(online, key=lambda row: row.hit_rate)
    optimum = by_policy[OPTIMUM]
    forced = by_policy.get(FORCED, optimum)
    return {
        "capacity": best.capacity,
        "best_online": best.policy,
        "gap": optimum.hit_rate - best.hit_rate,
        "by_passing_through": optimum.hit_rate - forced.hit_rate,
        "by_the_future": forced.hit_rate - best.hit_rate,
        "gap_bytes_per_token": _difference(best.miss_bytes_per_token, optimum.miss_bytes_per_token),
    }


def _difference(one: float | None, other: float | None) -> float | None:
    return None if one is None or other is None else one - other
