"""Knows how sure a mean over requests is; does not know of what."""

import numpy as np

RESAMPLES = 2000


def bootstrap_ci(values, weights=None, *, resamples: int = RESAMPLES, seed: int = 0) -> list[float] | None:
    """95 % percentile bootstrap interval of the (weighted) mean of one value a request; None for fewer than
    two requests.

    `values` float [requests], `weights` float [requests] (e.g. the number of pairs a request's mean is taken
    over).
    """
    values = np.asarray(values, np.float64)
    weights = np.ones_like(values) if weights is None else np.asarray(weights, np.float64)
    return ratio_interval(values * weights, weights, resamples=resamples, seed=seed)


def ratio_interval(
    numerators, denominators, *, resamples: int = RESAMPLES, seed: int = 0
) -> list[float] | None:
    """95 % percentile bootstrap interval of sum(numerators) / sum(denominators), resampling requests."""
    numerators, denominators = np.asarray(numerators, np.float64), np.asarray(denominators, np.float64)
    counted = denominators > 0
    numerators, denominators = numerators[counted], denominators[counted]
    requests = len(numerators)
    if requests < 2:
        return None
    generator = np.random.default_rng(seed)
    ratios = np.empty(resamples)
    for resample in range(resamples):
        drawn = generator.integers(0, requests, requests)
        ratios[resample] = numerators[drawn].sum() / denominators[drawn].sum()
    return [float(edge) for edge in np.percentile(ratios, (2.5, 97.5))]
