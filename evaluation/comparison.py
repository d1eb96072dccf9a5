"""Knows what one variant gained or lost against another; does not measure either.

Letters: R requests. Both saw the same requests, so a resample draws them together (paired bootstrap).
"""

from collections.abc import Mapping, Sequence

import numpy as np

from evaluation.cache_rows import at_share
from evaluation.measure import Measured
from evaluation.recording import has_pairs
from expert_cache import metrics
from expert_cache.intervals import ratio_interval

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


def comparisons(measured: Mapping[str, Measured], cache: Sequence[dict], resamples: int) -> dict[str, dict]:
    """`tuned_vs_control` and so on -> ratios on identical reference tokens (decode); below 1 is less of it.

    `switch_rate_ratio` (of 1 - ECR) and `perplexity_ratio` with `_ci95`; `lru_misses_25_ratio`: LRU misses
    at 25 % of the experts, a cache a layer.
    """
    return {
        f"{one}_vs_{other}": _compare(one, other, measured, cache, resamples)
        for one, other in PAIRS
        if one in measured and other in measured
    }


def _compare(
    one: str, other: str, measured: Mapping[str, Measured], cache: Sequence[dict], resamples: int
) -> dict:
    switched = _ratio("switch_rate_ratio", _switches(measured[one]), _switches(measured[other]), resamples)
    return (
        {"text": "teacher_forced", "phase": "decode"}
        | switched
        | {"lru_misses_25_ratio": _miss_ratio(one, other, cache)}
        | _perplexity_ratio(measured[one], measured[other], resamples)
    )


def _switches(measured: Measured) -> np.ndarray:
    """Choices that were not made a token before, a request, in units of K [R]."""
    trace = measured.recordings["teacher_forced"].trace
    if not has_pairs(trace, "decode"):
        return np.empty(0)
    found = metrics.ecr(trace, "decode")
    return found.pairs_by_request - found.by_request.mean(axis=1)


def _ratio(name: str, one: np.ndarray, other: np.ndarray, resamples: int) -> dict:
    if not other.sum():
        return {name: None, f"{name}_ci95": None}
    interval = ratio_interval(one, other, resamples)
    return {name: float(one.sum() / other.sum()), f"{name}_ci95": interval}


def _miss_ratio(one: str, other: str, cache: Sequence[dict]) -> float | None:
    rows = [at_share(cache, variant=variant, policy="lru") for variant in (one, other)]
    if rows[0] is None or rows[1] is None or not rows[1]["misses"]:
        return None
    return rows[0]["misses"] / rows[1]["misses"]


def _perplexity_ratio(one: Measured, other: Measured, resamples: int) -> dict:
    losses = [np.array([score.nll for score in found.scores.values()]) for found in (one, other)]
    tokens = np.array([score.tokens for score in one.scores.values()])
    change = losses[0] - losses[1]
    interval = ratio_interval(change, tokens, resamples)
    return {
        "perplexity_ratio": float(np.exp(change.sum() / tokens.sum())),
        "perplexity_ratio_ci95": interval and np.exp(interval).tolist(),
    }
