"""Knows how sure ratios of sums over requests are, many at once; does not know of what.

The same percentile bootstrap as `expert_cache.intervals`, with one draw of requests for all columns.
"""

import numpy as np


def ratio_intervals(numerators, denominators, resamples: int, seed: int = 0) -> list[list[float] | None]:
    """95 % intervals of sum(numerators[:, x]) / sum(denominators) for every column x, resampling requests.

    `numerators` [requests, X], `denominators` [requests]; None for each column with fewer than two requests.
    """
    numerators, denominators = np.asarray(numerators, np.float64), np.asarray(denominators, np.float64)
    counted = denominators > 0
    numerators, denominators = numerators[counted], denominators[counted]
    if len(denominators) < 2:
        return [None] * numerators.shape[1]
    times_drawn = _draws(len(denominators), resamples, seed)
    ratios = (times_drawn @ numerators) / (times_drawn @ denominators)[:, None]
    return [[float(low), float(high)] for low, high in np.percentile(ratios, (2.5, 97.5), axis=0).T]


def mean_interval(values, resamples: int, seed: int = 0) -> list[float] | None:
    """95 % interval of the mean of one value a request."""
    values = np.asarray(values, np.float64)
    return ratio_intervals(values[:, None], np.ones(len(values)), resamples, seed)[0]


def _draws(requests: int, resamples: int, seed: int) -> np.ndarray:
    """How often each request is drawn in each resample: [resamples, requests]."""
    drawn = np.random.default_rng(seed).integers(0, requests, (resamples, requests))
    return np.stack([np.bincount(row, minlength=requests) for row in drawn]).astype(np.float64)
