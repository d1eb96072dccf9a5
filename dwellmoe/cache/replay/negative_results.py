"""Negative results: which policies are not shown to miss less than a simple one, and what that holds for."""

from collections.abc import Mapping, Sequence
from typing import Any

from dwellmoe.cache.intervals import RESAMPLES, ratio_interval
from dwellmoe.cache.kernel.step import MISSES
from dwellmoe.cache.policies.base import parse_policy
from dwellmoe.cache.replay.gap import BASELINES
from dwellmoe.cache.replay.step_misses import StepMisses

WORSE, NOT_SHOWN, UNSURE = "misses more", "not shown to miss less", "no interval: too few requests"
NOT_SAID = "other models, texts, capacities, numbers of rows together, and weights fitted to other traces"


def negative_results(runs: Sequence[StepMisses], resamples: int = RESAMPLES) -> list[dict[str, Any]]:
    """A row for each policy, baseline and capacity where the policy is not shown to miss less.

    `ratio` is the policy's misses over the baseline's; its 95 % interval resamples requests, the same ones
    for both. A policy misses less where the whole interval is below 1.
    """
    online = [run for run in runs if parse_policy(run.spec)[0].lookahead == "none"]
    pairs = [
        (run, other)
        for run in online
        for other in online
        if run.spec != BASELINES[0]
        and run.spec != other.spec in BASELINES
        and run.budget.capacity == other.budget.capacity
    ]
    rows = [_row(run, other, resamples) for run, other in pairs]
    return [row for row in rows if row["ratio_ci95"] is None or row["ratio_ci95"][1] >= 1]


def _row(run: StepMisses, other: StepMisses, resamples: int) -> dict[str, Any]:
    missed, baseline = (found.counts()[..., MISSES].sum(axis=0) for found in (run, other))
    ci95 = ratio_interval(missed, baseline, resamples)
    return {
        "policy": run.spec,
        "against": other.spec,
        "capacity": run.budget.capacity,
        "ratio": float(missed.sum() / max(1, baseline.sum())),
        "ratio_ci95": ci95,
        "found": UNSURE if ci95 is None else WORSE if ci95[0] > 1 else NOT_SHOWN,
    }


def scope_of_results(block: Mapping[str, Any], unknown: str) -> list[tuple[str, str]]:
    """What the negative results of a reporting block hold for, as (what, value)."""
    replay, workload = block["replay"], block["workload"]
    rows = f"{workload['rows_together_mean']:.2f}"
    regime = ", ".join(
        f"{row['distinct_over_capacity_mean']:.3f} at {row['capacity']} slots" for row in block["regime"]
    )
    names = ("access", "scope", "phase", "start", "reset")
    return [
        ("model", workload["model"] or unknown),
        ("text", workload["source"] or unknown),
        ("requests, decoded tokens", f"{workload['requests']}, {workload['decode_steps']}"),
        ("rows together, in the mean", rows),
        ("distinct / capacity, mean", regime),
        ("replay", ", ".join(f"{name} {replay[name]}" for name in names)),
        ("says nothing of", NOT_SAID),
    ]
