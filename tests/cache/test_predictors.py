"""Predictors of use: the contract each keeps, their formulas, and how they are judged."""

import dataclasses
from typing import Any

import numpy as np
import pytest

from dwellmoe.cache.prediction import fit_eta, fuse, predictions, quality, used_of
from dwellmoe.cache.predictors import make_predictor, predictor_names
from dwellmoe.cache.recorded_predictions import RecordedPredictions, digest_of
from dwellmoe.cache.trace import EMPTY
from dwellmoe.errors import UserError
from dwellmoe.eviction_training.tables import habit_features
from tests.cache.traces import random_trace


@pytest.fixture(scope="module")
def traces():
    return [random_trace(seed, steps=300, requests=4, prefill=0.0) for seed in (0, 0)]


@pytest.mark.parametrize("name", predictor_names())
def test_contract(name, traces, tmp_path):
    """Probabilities, the same for the same past, blind to the token itself, and no worse than its chance."""
    learned, held_out = traces
    requests = used_of(held_out)
    spec = noisy(held_out, tmp_path / "p.safetensors") if name == "recorded" else name
    found = make_predictor(spec, learned.layers, learned.num_experts)
    found.follow(held_out)
    assert 1 <= found.horizon <= learned.layers
    message = predictions(spec, learned, requests)
    used = np.concatenate(requests)
    assert message.shape == used.shape and (message >= 0).all() and (message <= 1).all()
    assert np.array_equal(message, predictions(spec, learned, requests))
    changed = [part.copy() for part in requests]
    changed[-1][-1] = np.roll(changed[-1][-1], 1, axis=1)
    assert np.array_equal(predictions(spec, learned, changed)[:-1], message[:-1])
    assert np.array_equal(predictions(spec, learned, changed)[-1, 0], message[-1, 0])
    assert quality(message, used)["recall_at_k"] > 3 / 12


def noisy(trace, path) -> str:
    """A file that says what came true, not quite surely."""
    used, rng = np.concatenate(used_of(trace)), np.random.default_rng(0)
    early = (0.2 + 0.3 * used + 0.4 * rng.random(used.shape)).astype(np.float32)
    usual = used.mean(axis=0).astype(np.float32)
    RecordedPredictions(usual, early, None, digest_of(trace), "noisy").save(path)
    return f"recorded:file={path}"


def test_used_leaves_out_empty_slots():
    trace = random_trace(1, steps=30, prefill=0.3)
    experts = trace.experts.copy()
    experts[:, :, 2] = EMPTY
    found = np.concatenate(used_of(dataclasses.replace(trace, experts=experts)))
    assert len(found) == (trace.phase == 1).sum() and (found.sum(axis=2) == 2).all()


def test_ewma_is_its_formula():
    found = make_predictor("ewma:alpha=0.25", 1, 3)
    p = np.zeros(3)
    for used in np.array([[1, 0, 0], [1, 1, 0], [0, 1, 0]], bool):
        found.watch(0, used)
        p = 0.75 * p + 0.25 * used
        assert np.allclose(found.predict(0), p)
    assert p[2] == 0


def test_transition_is_the_counted_share():
    rng = np.random.default_rng(0)
    used = rng.random((50, 2, 4)) < 0.4
    found = make_predictor("transition:pseudocount=1e-9", 2, 4)
    found.learn(used)
    watched = make_predictor("transition:pseudocount=1e-9", 2, 4)
    for used_LE in used:
        for layer in range(2):
            watched.watch(layer, used_LE[layer])
    now, shares = np.array([True, False, True, False]), [used[used[:, 0, f], 1].mean(axis=0) for f in (0, 2)]
    each: Any
    for each in (found, watched):
        each.before_E = now
        assert np.allclose(each.predict(1), np.mean(shares, axis=0), atol=1e-6)


def test_habits_say_what_the_eviction_policy_ranks_by():
    """Its order of a layer's experts is the policy's, and it expects K of them."""
    used = np.concatenate(used_of(random_trace(3, steps=200, layers=1, prefill=0.0, requests=1)))
    found: Any = make_predictor("habits", 1, 12)
    found.learn(used)
    predicted = found.predict(0)
    weight, features = found.weight, np.zeros((1, 12, len(found.weight)))
    ids = np.concatenate([np.flatnonzero(row[0]) for row in used]).astype(np.int32)
    features = habit_features(ids, np.arange(len(used) + 1) * 3, 12)[-1]
    assert np.array_equal(np.argsort(predicted), np.argsort(features @ weight))
    assert predicted.sum() == pytest.approx(3)


def test_quality_of_the_sure_and_of_the_even_guess():
    used = np.random.default_rng(0).random((400, 2, 8)) < 0.25
    used[:, :, 0] |= ~used.any(axis=2)
    sure, even = quality(used.astype(float), used), quality(np.full(used.shape, used.mean()), used)
    assert sure["recall_at_k"] == 1 and sure["log_loss"] < 1e-3 and sure["calibration_error"] < 1e-3
    share = used.mean()
    entropy = -share * np.log(share) - (1 - share) * np.log(1 - share)
    assert even["log_loss"] == pytest.approx(entropy, abs=0.01) and even["calibration_error"] < 1e-6


def test_fusion_and_its_share():
    one, other, distance = np.array([0.2, 0.4]), np.array([0.6, 0.0]), np.array([1, 5])
    assert np.allclose(fuse(one, other, 0.25, distance), [0.3 * np.exp(-0.02), 0.3 * np.exp(-0.1)])
    used = np.random.default_rng(0).random((50, 2, 6)) < 0.3
    noise = np.full(used.shape, 0.5)
    assert fit_eta(noise, used.astype(float), used) == 1 and fit_eta(used.astype(float), noise, used) == 0


def test_unknown_predictors_and_options_are_refused():
    with pytest.raises(UserError, match="unknown predictor 'oracle': choose from ewma"):
        make_predictor("oracle", 1, 2)
    for wrong in ("ewma:alpha=0", "transition:pseudocount=0", "last:x=1"):
        with pytest.raises(UserError):
            make_predictor(wrong, 1, 2)
