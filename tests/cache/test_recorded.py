"""Predictions beside a trace: their file, when each is known, and what placement makes of them."""

import dataclasses
import subprocess
import sys
from typing import Any

import numpy as np
import pytest

from dwellmoe.cache.device import DeviceProfile, PlacementConstants
from dwellmoe.cache.predictors import make_predictor
from dwellmoe.cache.recorded_predictions import RecordedPredictions, digest_of
from dwellmoe.cache.replay.stall import stall
from dwellmoe.cache.tensor_file import write_tensors
from dwellmoe.cache.tiers.tier_policy import TierBudget
from dwellmoe.cache.trace import DECODE, RoutingTrace
from dwellmoe.errors import UserError
from tests.cache.traces import random_trace

DEVICE_1 = DeviceProfile("d", 1.0, 1e-3, ram_gb=1.0, ram_gb_per_second=1e-2)
LAYERS, EXPERTS = 3, 12


def traced(seed=0, **options) -> RoutingTrace:
    return random_trace(seed, expert_bytes=(1000,) * LAYERS, **({"steps": 60} | options))


def sure(trace: RoutingTrace, **parts: Any) -> RecordedPredictions:
    """The actual use, predicted in advance."""
    rows = np.flatnonzero(trace.phase == DECODE)
    used = np.zeros((len(rows), LAYERS, EXPERTS), np.float32)
    np.put_along_axis(used, trace.experts[rows].astype(int), 1, axis=2)
    given: dict[str, Any] = {"prior": used.mean(axis=0), "early": used, "late": None, "predictor": "sure"}
    given |= {"trace_digest": digest_of(trace), **parts}
    return RecordedPredictions(**given)


def truth(trace: RoutingTrace) -> np.ndarray:
    """What `sure` predicts early."""
    early = sure(trace).early
    assert early is not None
    return early


def recorded(tmp_path, found: RecordedPredictions) -> str:
    found.save(tmp_path / "p.safetensors")
    return f"recorded:file={tmp_path / 'p.safetensors'}"


@pytest.mark.parametrize("names", [("early",), ("late",), ("early", "late")])
def test_a_file_reads_back_as_written(tmp_path, names):
    early = truth(traced())
    parts = {name: early if name in names else None for name in ("early", "late")}
    found = sure(traced(), **parts)
    found.save(tmp_path / "p.safetensors")
    back = RecordedPredictions.load(tmp_path / "p.safetensors")
    for field in dataclasses.fields(found):
        assert np.array_equal(getattr(back, field.name), getattr(found, field.name)), field.name
    assert back.horizon == (LAYERS if "early" in names else 1) and back.tokens == len(early)
    back.check_trace(traced())


def test_the_digest_is_of_what_ran_and_not_of_names():
    trace = traced()
    assert digest_of(dataclasses.replace(trace, model="x")) == digest_of(trace)
    experts = trace.experts.copy()
    experts[-1, -1] = experts[-1, -1][::-1]
    for changed in ({"experts": experts}, {"request": trace.request + 1}, {"phase": 1 - trace.phase}):
        assert digest_of(dataclasses.replace(trace, **changed)) != digest_of(trace)


@pytest.mark.parametrize("names", [("early",), ("late",), ("early", "late")])
def test_nothing_is_predicted_before_it_is_known(tmp_path, names):
    """Of layers that ran, their prior; of later ones, as far as the file knows by then."""
    trace = traced(prefill=0.0)
    early, late = truth(trace) * np.float32(0.5), truth(trace)
    parts = {"early": early if "early" in names else None, "late": late if "late" in names else None}
    found = make_predictor(recorded(tmp_path, sure(trace, **parts)), LAYERS, EXPERTS)
    found.follow(trace)
    prior, next_predicted = sure(trace).prior, late if "late" in names else early
    far_predicted = np.broadcast_to(prior, late.shape) if names == ("late",) else early
    for token in range(trace.steps):
        assert np.array_equal(found.predict(0), next_predicted[token, 0])
        for layer in range(LAYERS):
            found.watch(layer, late[token, layer] > 0)
            for other in range(LAYERS):
                if other == layer + 1:
                    expected = next_predicted[token, other]
                elif other > layer:
                    expected = far_predicted[token, other]
                else:
                    expected = prior[other]
                if layer + 1 < LAYERS or other:
                    assert np.array_equal(found.predict(other), expected.astype(float))


def test_of_tokens_that_run_together_any_may_use_an_expert(tmp_path):
    trace = traced(prefill=0.0, batch_step=np.repeat(np.arange(30, dtype=np.int32), 2))
    half = truth(trace) * np.float32(0.5)
    found = make_predictor(recorded(tmp_path, sure(trace, early=half)), LAYERS, EXPERTS)
    found.follow(trace)
    for first in range(0, 60, 2):
        assert np.allclose(found.predict(0), 1 - (1 - half[first, 0]) * (1 - half[first + 1, 0]))
        for layer in range(LAYERS):
            found.watch(layer, half[first, layer] > 0)


@pytest.mark.parametrize("tier_policy", ["placement", "placement+prefetch"])
def test_placement_waits_less_the_more_it_is_told(tmp_path, tier_policy):
    trace = traced(prefill=0.2, steps=300)
    late = sure(trace, early=None, late=truth(trace))
    waited = []
    for number, found in enumerate((None, late, sure(trace))):
        lookahead, folder = "", tmp_path / str(number)
        if found:
            folder.mkdir()
            lookahead = recorded(folder, found)
        device = dataclasses.replace(DEVICE_1, placement=PlacementConstants(lookahead=lookahead, eta=1.0))
        waited.append(stall(trace, device, TierBudget(10_000, 9_000), tier_policy).stall_seconds)
    assert waited[0] > waited[1] > waited[2]


def test_what_is_no_file_of_predictions_is_told(tmp_path):
    trace, path = traced(), tmp_path / "p.safetensors"
    with pytest.raises(UserError, match="cannot be read"):
        RecordedPredictions.load(path)
    trace.save(path)
    with pytest.raises(UserError, match="format and version must be moe-use-predictions 1, got 'moe-routing"):
        RecordedPredictions.load(path)
    whole = {"format": "moe-use-predictions", "version": "1", "trace_digest": "0", "predictor": "p"}
    early, prior = truth(trace), sure(trace).prior
    wrong = [
        ({"prior": prior}, whole, "'early' or 'late' needed"),
        ({"early": early}, whole, "'prior' is unknown or missing"),
        ({"prior": prior, "early": early, "x": prior}, whole, "'x' is unknown"),
        ({"prior": prior, "early": early}, {**whole, "trace_digest": None}, "'trace_digest' is unknown or m"),
        (
            {"prior": prior, "early": early[:, :1]},
            whole,
            r"early must be float32 \[\d+, 3, 12\], got float32",
        ),
        ({"prior": prior, "early": early, "late": early[1:]}, whole, "late must be float32"),
        ({"prior": prior.astype(np.float64), "early": early}, whole, "prior must be float32"),
        ({"prior": prior, "early": early * 2}, whole, "early holds values that are no probabilities"),
        ({"prior": prior, "early": early * np.nan}, whole, "early holds values that are no probabilities"),
    ]
    for tensors, facts, message in wrong:
        write_tensors(path, tensors, {name: value for name, value in facts.items() if value is not None})
        with pytest.raises(UserError, match=f"p.safetensors: .*{message}"):
            RecordedPredictions.load(path)


def test_predictions_of_something_else_are_told(tmp_path):
    trace, spec = traced(), recorded(tmp_path, sure(traced()))
    with pytest.raises(UserError, match="needs a file of"):
        make_predictor("recorded", LAYERS, EXPERTS)
    with pytest.raises(UserError, match="predictions for 3 x 12 experts, not for 4 x 12"):
        make_predictor(spec, 4, EXPERTS)
    shorter = traced(steps=50)
    with pytest.raises(UserError, match=r"\d+ decoded tokens, 3 layers x 12 experts are not of this trace"):
        make_predictor(spec, LAYERS, EXPERTS).follow(shorter)
    other = dataclasses.replace(trace, experts=trace.experts[:, :, ::-1].copy())
    with pytest.raises(UserError, match="predictions of another trace: digest"):
        make_predictor(spec, LAYERS, EXPERTS).follow(other)


@pytest.mark.slow
@pytest.mark.parametrize("wrong", ["none.safetensors", "other"])
def test_simulate_leaves_with_two_and_one_line(tmp_path, wrong):
    trace, device = traced(), tmp_path / "d.toml"
    trace.save(tmp_path / "t.safetensors")
    spec = recorded(tmp_path, sure(traced(1, steps=60, prefill=0.3)))
    spec = spec if wrong == "other" else f"recorded:file={wrong}"
    speeds = "memory_gb_per_second = 1.0\nstorage_gb_per_second = 1.0"
    device.write_text(f'name = "d"\n{speeds}\n[placement]\nlookahead = "{spec}"\n')
    words = [
        "stall",
        "--trace",
        tmp_path / "t.safetensors",
        "--device",
        device,
        "--tier_policies",
        "placement",
    ]
    words = [*map(str, words), "--capacity", "40%", "--json", str(tmp_path / "o.json")]
    command = [sys.executable, "-m", "dwellmoe", "simulate", *words]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr.startswith("error: ") and done.stderr.count("\n") == 1
    assert "safetensors: " in done.stderr and not (tmp_path / "o.json").exists()
