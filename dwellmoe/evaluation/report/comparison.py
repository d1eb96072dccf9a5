"""Compares variants: ratios of switches, cache misses and perplexity on the same requests.

Letters: R requests. A resample draws the same requests for both variants (paired bootstrap).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from dwellmoe.cache import metrics
from dwellmoe.cache.intervals import ratio_interval
from dwellmoe.cache.replay.memory_equivalent import MemoryEquivalent, memory_equivalent
from dwellmoe.cache.replay.replay import misses_by_request
from dwellmoe.cache.trace import RoutingTrace
from dwellmoe.evaluation.measure import Measured
from dwellmoe.evaluation.recording import has_pairs

PAIRS = (
    ("tuned", "control"),
    ("tuned", "base"),
    ("control", "base"),
    ("base-rerouted", "base"),
    ("control-rerouted", "control"),
    ("tuned-rerouted", "tuned"),
    ("tuned-rerouted", "base"),
    ("tuned-rerouted", "base-rerouted"),
    ("tuned-rerouted", "control-rerouted"),
)


class Ratio(NamedTuple):
    """A ratio of sums over requests and its 95 % interval; None where there is nothing to divide by."""

    value: float | None
    ci95: list[float] | None

    @classmethod
    def of(cls, parts_R: np.ndarray, whole_R: np.ndarray, resamples: int) -> "Ratio":
        """sum(parts) / sum(whole)."""
        if not whole_R.sum():
            return cls(None, None)
        interval = ratio_interval(parts_R, whole_R, resamples)
        return cls(float(parts_R.sum() / whole_R.sum()), interval)

    def as_dict(self, name: str) -> dict[str, Any]:
        return {name: self.value, f"{name}_ci95": self.ci95}


@dataclass(frozen=True)
class Comparison:
    """One variant against another on identical reference tokens in decode; below 1 is less of it."""

    switch_rate_ratio: Ratio
    """Of 1 - ECR: choices that change from token to token."""
    lru_misses_25_ratio: Ratio
    """LRU misses at 25 % of the experts, a cache a layer."""
    perplexity_ratio: Ratio
    memory_equivalent_25: MemoryEquivalent | None = None
    """The LRU cache that the other variant needs to miss as seldom as this one at 25 %, over that size."""

    def as_dict(self) -> dict[str, Any]:
        """The comparison as one JSON object."""
        row: dict[str, Any] = {"text": "teacher_forced", "phase": "decode"}
        for name, ratio in vars(self).items():
            if isinstance(ratio, Ratio):
                row |= ratio.as_dict(name)
        worth = self.memory_equivalent_25
        ratio = Ratio(None, None) if worth is None else Ratio(worth.ratio, worth.ratio_ci95)
        return (
            row
            | ratio.as_dict("memory_equivalent_25")
            | {"memory_equivalent_25_bound": worth and worth.bound}
        )


def comparisons(
    measured: Mapping[str, Measured], cache: Sequence[dict], resamples: int
) -> dict[str, Comparison]:
    """`tuned_vs_control` and so on, for every pair measured; `cache`: the hit-rate rows of the report."""
    return {
        f"{one}_vs_{other}": Comparison(
            switch_rate_ratio=switch_rate_ratio(measured[one], measured[other], resamples),
            lru_misses_25_ratio=_miss_ratio(measured[one], measured[other], cache, resamples),
            perplexity_ratio=perplexity_ratio(measured[one], measured[other], resamples),
            memory_equivalent_25=_memory_equivalent(measured[one], measured[other], cache, resamples),
        )
        for one, other in PAIRS
        if one in measured and other in measured
    }


def switch_rate_ratio(one: Measured, other: Measured, resamples: int) -> Ratio:
    """Choices that change from token to token against those of another variant."""
    return Ratio.of(_switches(one), _switches(other), resamples)


def _switches(measured: Measured) -> np.ndarray:
    """Choices of each request that the token before had not made, in units of K [R]."""
    trace = measured.recordings["teacher_forced"].trace
    if not has_pairs(trace, "decode"):
        return np.empty(0)
    found = metrics.ecr(trace, "decode")
    return found.pairs_by_request - found.by_request.mean(axis=1)


def _miss_ratio(one: Measured, other: Measured, cache: Sequence[dict], resamples: int) -> Ratio:
    row = at_share(cache, policy="lru")
    if row is None:
        return Ratio(None, None)
    traces = _reference_traces(one, other)
    missed = [misses_by_request(trace, "lru", row["capacity"], **_setup(row)) for trace in traces]
    return Ratio.of(missed[0], missed[1], resamples)


def _memory_equivalent(
    one: Measured, other: Measured, cache: Sequence[dict], resamples: int
) -> MemoryEquivalent | None:
    row = at_share(cache, policy="lru")
    if row is None:
        return None
    traces = _reference_traces(one, other)
    return memory_equivalent(*traces, row["capacity"], "lru", resamples=resamples, **_setup(row))


def _setup(row: Mapping) -> dict[str, str]:
    """The cache setup that a hit-rate row was counted with."""
    return {name: row[name] for name in ("scope", "access", "phase", "start", "reset")}


def _reference_traces(one: Measured, other: Measured) -> tuple[RoutingTrace, RoutingTrace]:
    return one.recordings["teacher_forced"].trace, other.recordings["teacher_forced"].trace


def perplexity_ratio(one: Measured, other: Measured, resamples: int) -> Ratio:
    """Perplexity of the reference answers against that of another variant."""
    losses = [np.array([score.nll for score in measured.scores.values()]) for measured in (one, other)]
    tokens = np.array([score.tokens for score in one.scores.values()])
    change = losses[0] - losses[1]
    interval = ratio_interval(change, tokens, resamples)
    with np.errstate(over="ignore"):  # an infinite ratio is None in the report
        return Ratio(float(np.exp(change.sum() / tokens.sum())), interval and np.exp(interval).tolist())


def at_share(rows: Sequence[dict], percent: float = 25.0, **wanted: str) -> dict | None:
    """Of hit-rate rows the one with the most slots within `percent` of the experts, else the smallest.

    `wanted` adds to, or replaces, scope layer, phase decode and text teacher_forced. None without rows.
    """
    found = rows_where(rows, **{"scope": "layer", "phase": "decode", "text": "teacher_forced"} | wanted)
    if not found:
        return None
    within = [row for row in found if row["capacity_percent"] <= percent]
    return max(within, key=lambda r: r["capacity"]) if within else min(found, key=lambda r: r["capacity"])


def rows_where(rows: Sequence[dict], **wanted: str) -> list[dict]:
    """The rows of a report with these values."""
    return [row for row in rows if all(row[name] == value for name, value in wanted.items())]
