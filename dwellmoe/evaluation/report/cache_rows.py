"""Knows the hit-rate rows of a report and which convention each phase is counted by; does not simulate.

Letters: L MoE layers, E routed experts a layer.
"""

from collections.abc import Sequence

from dwellmoe.cache.policies.base import parse_policy
from dwellmoe.cache.replay.curve import curve
from dwellmoe.cache.replay.rows import HitRateRow
from dwellmoe.cache.trace import RoutingTrace
from dwellmoe.evaluation.recording import PHASES

ACCESS = {"prefill": "sequential", "decode": "atomic"}
"""A prompt's experts never fit at once, so prefill loads them one after the other, each once a chunk."""
SCOPES = ("layer", "global")


def policy_list(text: str) -> list[str]:
    """Policies of a comma list, options and all: `lru,lopt:horizon=2`. Raises UserError."""
    specs: list[str] = []
    for part in filter(None, (part.strip() for part in text.split(","))):
        if "=" in part and ":" not in part and specs:
            specs[-1] += "," + part
        else:
            specs.append(part)
    for spec in specs:
        parse_policy(spec)
    return specs


def cache_rows(
    variant: str, text: str, trace: RoutingTrace, policies: Sequence[str], resamples: int
) -> list[dict]:
    """Rows of every policy, capacity and scope, prefill and decode apart, each from a cold cache.

    Scope `layer` has every capacity; scope `global` the same budgets, in steps of L slots.
    """
    rows = [
        row
        for phase in PHASES
        if (trace.phase == PHASES[phase]).any()
        for scope in SCOPES
        for row in _curve(trace, policies, scope, phase, resamples)
    ]
    return [{"variant": variant, "text": text} | row.as_dict() for row in rows]


def _curve(
    trace: RoutingTrace, policies: Sequence[str], scope: str, phase: str, resamples: int
) -> list[HitRateRow]:
    access = ACCESS[phase]
    each = trace.layers if scope == "global" else 1
    least = trace.top_k if access == "atomic" else 1
    capacities = [slots * each for slots in range(1, trace.num_experts + 1) if slots * each >= least]
    return curve(trace, policies, capacities, resamples=resamples, scope=scope, access=access, phase=phase)


def at_share(rows: Sequence[dict], percent: float = 25.0, **wanted: str) -> dict | None:
    """The row with the most slots within `percent` of the experts, else the smallest; None without rows.

    `wanted` narrows further, or replaces, scope layer, phase decode and text teacher_forced.
    """
    wanted = {"scope": "layer", "phase": "decode", "text": "teacher_forced"} | wanted
    found = [row for row in rows if all(row[name] == value for name, value in wanted.items())]
    if not found:
        return None
    within = [row for row in found if row["capacity_percent"] <= percent]
    return max(within, key=lambda r: r["capacity"]) if within else min(found, key=lambda r: r["capacity"])
