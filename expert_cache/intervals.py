"""Knows how sure ratios of sums over requests are; does not know of what.

Letters: R requests, X columns.
"""

import numpy as np

RESAMPLES = 2000


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

    `numerators` [R, X], `denominators` [R]. Requests are resampled, the same ones for all columns; None for
    each column with fewer than two requests whose denominator is above 0.
    """
    table = np.column_stack([np.asarray(numerators, np.float64), np.asarray(denominators, np.float64)])
    table = table[table[:, -1] > 0]
    requests, columns = len(table), table.shape[1] - 1
    if requests < 2:
        return [None] * columns
    generator = np.random.default_rng(seed)
    sums = np.empty((resamples, columns + 1))
    for resample in range(resamples):
        drawn = generator.integers(0, requests, requests)
        sums[resample] = np.bincount(drawn, minlength=requests) @ table
    edges = np.percentile(sums[:, :-1] / sums[:, -1:], (2.5, 97.5), axis=0)
    return [[float(low), float(high)] for low, high in edges.T]
