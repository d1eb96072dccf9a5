"""Knows what one variant gained or lost against another; does not measure either.

Letters: R requests. Both saw the same requests, so a resample draws them together (paired bootstrap).
"""

from collections.abc import Mapping, Sequence

import numpy as np

from dwellmoe.cache import metrics
from dwellmoe.cache.intervals import ratio_interval
from dwellmoe.cache.replay.replay import misses_by_request
from dwellmoe.evaluation.measure import Measured
from dwellmoe.evaluation.recording import has_pairs
from dwellmoe.evaluation.report.cache_rows import at_share

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

    `switch_rate_ratio` (of 1 - ECR), `lru_misses_25_ratio` (LRU misses at 25 % of the experts, a cache a
    layer) and `perplexity_ratio`, each with `_ci95`.
    """
    return {
        f"{one}_vs_{other}": _compare(one, other, measured, cache, resamples)
        for one, other in PAIRS
        if one in measured and other in measured
    }


def _compare(
    one: str, other: str, measured: Mapping[str, Measured], cache: Sequence[dict], resamples: int
) -> dict:
    return (
        {"text": "teacher_forced", "phase": "decode"}
        | switch_rate_ratio(measured[one], measured[other], resamples)
        | _miss_ratio(measured[one], measured[other], cache, resamples)
        | perplexity_ratio(measured[one], measured[other], resamples)
    )


def switch_rate_ratio(one: Measured, other: Measured, resamples: int) -> dict:
    """Choices that change from token to token against another variant's; below 1 is fewer of them."""
    return _ratio("switch_rate_ratio", _switches(one), _switches(other), resamples)


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


def _miss_ratio(one: Measured, other: Measured, cache: Sequence[dict], resamples: int) -> dict:
    row = at_share(cache, policy="lru")
    if row is None:
        return {"lru_misses_25_ratio": None, "lru_misses_25_ratio_ci95": None}
    convention = {name: row[name] for name in ("scope", "access", "phase", "start", "reset")}
    traces = [found.recordings["teacher_forced"].trace for found in (one, other)]
    missed = [misses_by_request(trace, "lru", row["capacity"], **convention) for trace in traces]
    return _ratio("lru_misses_25_ratio", missed[0], missed[1], resamples)


def perplexity_ratio(one: Measured, other: Measured, resamples: int) -> dict:
    """`perplexity_ratio` of reference answers with its `_ci95`, paired over requests."""
    losses = [np.array([score.nll for score in found.scores.values()]) for found in (one, other)]
    tokens = np.array([score.tokens for score in one.scores.values()])
    change = losses[0] - losses[1]
    interval = ratio_interval(change, tokens, resamples)
    return {
        "perplexity_ratio": float(np.exp(change.sum() / tokens.sum())),
        "perplexity_ratio_ci95": interval and np.exp(interval).tolist(),
    }
