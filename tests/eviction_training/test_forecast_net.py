"""The net of a forecast: its inputs are what the policy sees, and it learns what follows what."""

import numpy as np
import pytest

from dwellmoe.cache.learned.forecast import HORIZONS, LOOKED_BACK, NEIGHBOURS
from dwellmoe.cache.replay.forecast_quality import forecast_quality
from dwellmoe.cache.trace import RoutingTrace
from dwellmoe.errors import UserError
from dwellmoe.eviction_training.fit import FitSettings, fit
from dwellmoe.eviction_training.forecast_net import INPUTS, ForecastNet, inputs_of
from tests.cache.traces import random_trace

pytestmark = pytest.mark.slow


def test_inputs_are_the_last_steps_and_the_layers_around():
    trace = random_trace(0, steps=12, layers=6, prefill=0.0)
    for layer in range(trace.layers):
        found = inputs_of(trace, layer)
        sources = [(0, back) for back in range(LOOKED_BACK)] + [*NEIGHBOURS]
        for step in range(trace.steps):
            for at, (up, back) in enumerate(sources):
                known = step >= back and 0 <= layer + up < trace.layers
                chosen = trace.experts[step - back, layer + up].tolist() if known else []
                assert np.flatnonzero(found[step, at]).tolist() == sorted(chosen)


def test_nothing_of_the_running_token_is_known_of_later_layers():
    assert all(back > 0 or up < 0 for up, back in NEIGHBOURS)
    assert LOOKED_BACK + len(NEIGHBOURS) == INPUTS


def test_too_short_held_out_requests_are_refused_before_anything_is_fitted(tmp_path):
    base = random_trace(0, steps=20, prefill=0.0)
    trace = RoutingTrace(base.experts, base.phase, (np.arange(20) // 4).astype(np.int32), 12)
    with pytest.raises(UserError, match="--validation"):
        fit(trace, "ml_forecast", str(tmp_path / "w.safetensors"), FitSettings(capacity=6))
    assert not list(tmp_path.iterdir())


def test_an_untrained_net_adds_nothing():
    net = ForecastNet(np.zeros((len(HORIZONS), 2)), 4, np.arange(len(HORIZONS)), seed=0)
    arrays = net.arrays()
    assert not arrays["out"].any() and not arrays["out_bias"].any()
    assert arrays["neighbours"].shape == (len(NEIGHBOURS), 4, arrays["hidden_bias"].shape[0])


def test_a_fit_finds_what_always_follows(tmp_path):
    """Each set of experts is the last one's, moved by one: only the net can know, and it forecasts it."""
    rng, steps, experts = np.random.default_rng(0), 600, 12
    state, rows = rng.permutation(experts)[:3], []
    for _ in range(steps):
        state = rng.permutation(experts)[:3] if rng.random() < 0.1 else (state + 1) % experts
        rows.append(np.stack([state, rng.permutation(experts)[:3]]))
    chosen = np.array(rows, np.uint16)
    request = (np.arange(steps) // 60).astype(np.int32)
    trace = RoutingTrace(chosen, np.ones(steps, np.uint8), request, experts)
    out = str(tmp_path / "w.safetensors")
    found = fit(trace, "ml_forecast", out, FitSettings(capacity=6, epochs=20))
    rates = {row.policy: row.hit_rate for row in found["cache"]}
    assert rates[f"ml_forecast:weights={out}"] > max(rates["lru"], rates["lfru"])
    judged = {(row.predictor, row.horizon_tokens): row for row in forecast_quality(trace, out)}
    assert judged["ml_forecast", 1].recall_at_k > 1.5 * judged["uses so far", 1].recall_at_k
