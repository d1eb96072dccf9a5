"""Bootstrap intervals of ratios of sums over requests.

Letters: R requests, X columns, C cases, L layers.
"""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np

RESAMPLES = 2000
RESAMPLES_AT_ONCE = 100  # in one product of matrices


def bootstrap_ci(values, weights=None, *, resamples: int = RESAMPLES, seed: int = 0) -> list[float] | None:
    """95 % interval of the (weighted) mean of one value a request; None for fewer than two requests.

    `values` float [R], `weights` float [R] (e.g. the number of pairs a request's mean is taken over).
    """
    values = np.asarray(values, np.float64)
    weights = np.ones_like(values) if weights is None else np.asarray(weights, np.float64)
    return ratio_interval(values * weights, weights, resamples, seed)


def ratio_interval(numerators, denominators, resamples: int = RESAMPLES, seed: int = 0) -> list[float] | None:
    """95 % interval of sum(numerators) / sum(denominators), both [R]; None for fewer than two requests."""
    return ratio_intervals(np.asarray(numerators)[:, None], denominators, resamples, seed)[0]


def ratio_intervals(
    numerators, denominators, resamples: int = RESAMPLES, seed: int = 0
) -> list[list[float] | None]:
    """95 % percentile bootstrap intervals of sum(numerators[:, x]) / sum(denominators) for every column x.

    `numerators` [R, X]; `denominators` [R], or [R, Y] where X is a multiple of Y and column x is over column
    x % Y. Requests are resampled, the same ones for all columns; None for each column with fewer than two
    requests whose denominator is above 0, and for all with no resamples.
    """
    above, below = np.asarray(numerators, np.float64), np.asarray(denominators, np.float64)
    below = below.reshape(len(above), -1)
    counted = (below > 0).any(axis=1)
    enough = np.tile((below > 0).sum(axis=0) > 1, above.shape[1] // below.shape[1])
    if not enough.any() or not resamples:
        return [None] * above.shape[1]
    ratios = _resampled(above[counted], below[counted], resamples, seed)
    ratios = ratios[:, enough]
    percentile = np.nanpercentile if np.isnan(ratios).any() else np.percentile  # the former is slow
    edges = percentile(ratios, (2.5, 97.5), axis=0)
    found = ([float(low), float(high)] for low, high in edges.T)
    return [next(found) if sure else None for sure in enough]


def interval_of(
    statistic: Callable[[np.ndarray], np.ndarray],
    numerators,
    denominators,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> list[float] | None:
    """95 % percentile bootstrap interval of a statistic of several ratios of sums over the same requests.

    `numerators`, `denominators` [R, X]; `statistic` maps the ratios [B, X] of B resamples to [B]. Resamples
    that have no value are left out; None where all are, and for fewer than two requests.
    """
    above, below = np.asarray(numerators, np.float64), np.asarray(denominators, np.float64)
    if len(above) < 2 or not resamples:
        return None
    with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
        found = statistic(_resampled(above, below, resamples, seed))
        found = found[~np.isnan(found)]
        return np.percentile(found, (2.5, 97.5)).tolist() if len(found) else None


class Rate(NamedTuple):
    """A rate of all layers together and of each layer, with 95 % intervals where there are two requests."""

    value: Any  # float; None where it is unknown
    ci95: list[float] | None
    per_layer: Any  # list[float]; None where it is unknown
    per_layer_ci95: list[list[float] | None] | None


def rates(
    above_RCL: np.ndarray, below_RL: np.ndarray, below_R: np.ndarray, resamples: int = RESAMPLES
) -> list[Rate]:
    """The rate of each case: a layer's is over `below_RL`, that of all layers together over `below_R`."""
    above = np.concatenate([above_RCL.sum(axis=2, keepdims=True), above_RCL], axis=2)
    below = np.column_stack([below_R, below_RL])
    values_CX = above.sum(axis=0) / np.maximum(1, below.sum(axis=0))
    intervals = ratio_intervals(above.reshape(len(above), -1), below, resamples)
    columns = below.shape[1]
    return [
        _rate(values, intervals[case * columns : (case + 1) * columns])
        for case, values in enumerate(values_CX.tolist())
    ]


def _rate(values: list[float], intervals: list[list[float] | None]) -> Rate:
    """From columns of which the first is all layers together."""
    per_layer_ci95 = None if intervals[0] is None else intervals[1:]
    return Rate(values[0], intervals[0], values[1:], per_layer_ci95)


def _resampled(above: np.ndarray, below: np.ndarray, resamples: int, seed: int) -> np.ndarray:
    """float64 [resamples, X]: the ratios of requests drawn anew; nan where none drawn has the denominator."""
    ratios = np.empty((resamples, above.shape[1] // below.shape[1], below.shape[1]))
    begins = range(0, resamples, RESAMPLES_AT_ONCE)
    for begin, times in zip(begins, times_drawn(len(above), resamples, seed), strict=True):
        part = ratios[begin : begin + RESAMPLES_AT_ONCE]
        with np.errstate(invalid="ignore", divide="ignore"):
            np.divide((times @ above).reshape(part.shape), (times @ below)[:, None], out=part)
    return ratios.reshape(resamples, -1)


def times_drawn(requests: int, resamples: int = RESAMPLES, seed: int = 0) -> Iterator[np.ndarray]:
    """float64 [at most `RESAMPLES_AT_ONCE`, R]: how often each request was drawn, for all resamples."""
    generator = np.random.default_rng(seed)
    for begin in range(0, resamples, RESAMPLES_AT_ONCE):
        drawn = generator.integers(0, requests, (min(RESAMPLES_AT_ONCE, resamples - begin), requests))
        yield np.stack([np.bincount(row, minlength=requests) for row in drawn]).astype(np.float64)
