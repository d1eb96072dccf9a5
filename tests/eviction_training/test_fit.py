"""Fitting: requests stay whole, labels and losses are the definition's, the file serves at once."""

import dataclasses

import numpy as np
import pytest

from dwellmoe.cache.learned.weights import load_weights
from dwellmoe.cache.policies.base import Shape, parse_policy, policy_names
from dwellmoe.cache.trace import RoutingTrace
from dwellmoe.errors import UserError
from dwellmoe.eviction_training.fit import FITTERS, FitSettings, fit
from dwellmoe.eviction_training.fitters.ml_habits import log_loss, regress
from dwellmoe.eviction_training.mlp import horizon_label, long_horizon
from dwellmoe.eviction_training.requests import split_by_request
from tests.cache.traces import NEEDS_WEIGHTS, random_trace

pytestmark = pytest.mark.slow

FAST = FitSettings(epochs=2, capacity=6)


@pytest.fixture(scope="module")
def trace():
    return random_trace(0, steps=400, requests=10)


def test_what_can_be_fitted_is_a_policy():
    learned = {name for name in policy_names() if name.startswith("ml_")}
    assert set(FITTERS.names()) == learned | NEEDS_WEIGHTS


@pytest.mark.parametrize("policy", FITTERS.names())
def test_a_fit_is_served_at_once(policy, trace, tmp_path):
    out = tmp_path / "w.safetensors"
    found = fit(trace, policy, str(out), FAST)
    rates = {row.policy: row.hit_rate for row in found["cache"]}
    assert list(rates)[-1] == f"{policy}:weights={out}" and max(rates.values()) == rates["opt"]
    assert (len(found["log"]) >= 1) == (policy not in NEEDS_WEIGHTS) and found["facts"]["seed"] == 0
    again = fit(trace, policy, str(tmp_path / "again.safetensors"), FAST)
    layout = parse_policy(policy)[0].LAYOUT
    (tensors, facts), (same, _) = (
        load_weights(str(tmp_path / name), policy, layout) for name in ("w.safetensors", "again.safetensors")
    )
    assert all(np.array_equal(tensors[name], same[name]) for name in tensors) and again["log"] == found["log"]
    assert facts.get("c0") == ("36" if policy == "ml_cecar" else None)


@pytest.mark.parametrize("policy", sorted(set(FITTERS.names()) - NEEDS_WEIGHTS))
def test_shipped_weights_are_read(policy):
    found, options = parse_policy(policy)
    found.allocate(Shape(caches=3, experts=12, capacity=np.full(3, 6), layers=3), **options)


def test_requests_stay_whole(trace):
    split = split_by_request(trace, "decode", 0.3, seed=1)
    train, held_out = set(split.train.request.tolist()), set(split.validation.request.tolist())
    assert not train & held_out and len(held_out) == 3 and len(train) == 7
    decode = int((trace.phase == 1).sum())
    assert split.train.steps + split.validation.steps == decode
    other = split_by_request(trace, "decode", 0.3, seed=2)
    assert set(other.validation.request.tolist()) != held_out


def test_too_few_requests_are_refused(tmp_path):
    base = random_trace(0)
    one = RoutingTrace(base.experts, base.phase, np.zeros(base.steps, np.int32), 12)
    with pytest.raises(UserError, match="splits by request and needs"):
        fit(one, "ml_habits", str(tmp_path / "w"), FAST)
    with pytest.raises(UserError, match="unknown learned policy 'lru'"):
        fit(base, "lru", str(tmp_path / "w"), FAST)
    for wrong in ({"validation": 1.0}, {"epochs": 0}):
        with pytest.raises(UserError):
            dataclasses.replace(FAST, **wrong)
    assert not list(tmp_path.iterdir())


def test_labels_and_horizons():
    assert (long_horizon(64), long_horizon(128), long_horizon(32)) == (48, 98, 24)
    assert horizon_label(np.array([1, 2, 25, 48, 1 << 30]), 48).tolist() == pytest.approx(
        [0, 1 / 47, 24 / 47, 1, 1]
    )


def test_regression_finds_the_weights_that_made_the_data():
    rng = np.random.default_rng(0)
    x, true = rng.normal(size=(20000, 3)), np.array([1.0, -0.5, 0.0])
    y = rng.random(20000) < 1 / (1 + np.exp(-x @ true))
    weight, loss = regress(x[:15000], y[:15000], x[15000:], y[15000:])
    assert np.allclose(weight, true, atol=0.1) and loss < log_loss(np.zeros(5000), y[15000:])
