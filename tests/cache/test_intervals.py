"""Bootstrap intervals of statistics of several ratios, against loops over resamples."""

import numpy as np
import pytest

from dwellmoe.cache.intervals import interval_of, ratio_interval

RESAMPLES = 60


def quotient(ratios_B2):
    return ratios_B2[:, 0] / ratios_B2[:, 1]


def test_the_interval_of_a_quotient_is_that_of_a_loop():
    rng = np.random.default_rng(3)
    above_R2, below_R2 = rng.random((7, 2)), rng.integers(1, 9, (7, 2))
    drawn = np.random.default_rng(0).integers(0, 7, (RESAMPLES, 7))
    found = []
    for draw in drawn.tolist():
        sums = [sum(column[i] for i in draw) for column in (*above_R2.T.tolist(), *below_R2.T.tolist())]
        found.append(sums[0] / sums[2] / (sums[1] / sums[3]))
    expected = np.percentile(found, (2.5, 97.5)).tolist()
    assert interval_of(quotient, above_R2, below_R2, RESAMPLES) == pytest.approx(expected)


def test_a_single_ratio_has_the_interval_of_a_ratio():
    above_R, below_R = np.array([1.0, 4.0, 2.0, 2.5]), np.array([2, 3, 9, 1])
    found = interval_of(lambda ratios: ratios[:, 0], above_R[:, None], below_R[:, None], RESAMPLES)
    assert found == pytest.approx(ratio_interval(above_R, below_R, RESAMPLES))


def test_resamples_without_a_value_are_left_out():
    above_R2, below_R2 = np.array([[1.0, 0.0], [2.0, 3.0]]), np.array([[1, 0], [1, 1]])
    found = interval_of(quotient, above_R2, below_R2, RESAMPLES)
    assert found is not None and np.isfinite(found).all()
    assert interval_of(quotient, np.zeros((2, 2)), np.zeros((2, 2)), RESAMPLES) is None
    assert interval_of(quotient, above_R2[:1], below_R2[:1], RESAMPLES) is None
    assert interval_of(quotient, above_R2, below_R2, 0) is None


def test_nineteen_of_twenty_intervals_hold_the_true_quotient():
    rng = np.random.default_rng(7)
    held = 0
    for _ in range(300):
        tokens_R2 = rng.integers(5, 60, (40, 2))
        nats_R2 = tokens_R2 * rng.gamma((2.0, 3.0), 0.01, (40, 2))
        low, high = interval_of(quotient, nats_R2, tokens_R2, 300) or (0.0, 0.0)
        held += low <= 2 / 3 <= high
    assert 0.9 <= held / 300 <= 0.98
