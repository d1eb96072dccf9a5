"""The forecast of coming tokens against its description written slowly, and what uses it."""

import dataclasses
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dwellmoe.cache.learned.forecast import DECAYS, HORIZONS, LAYOUT, LOOKED_BACK, NAMES, NEIGHBOURS
from dwellmoe.cache.learned.online import FIRST_SQUARES, LEARNING_RATE, NOTED
from dwellmoe.cache.learned.routing_statistics import FOLLOWING
from dwellmoe.cache.learned.weights import save_weights
from dwellmoe.cache.predictors import make_predictor
from dwellmoe.cache.replay.forecast_quality import SHARE, forecast_quality, used_within
from dwellmoe.cache.replay.replay import replay
from dwellmoe.cache.trace import RoutingTrace, as_decode
from dwellmoe.errors import UserError
from dwellmoe.eviction_training.tables import forecast_features, requested
from tests.cache.test_learned import (
    CAPACITY,
    EXPERTS,
    LAYERS,
    TOP_K,
    live_evictions,
    slow_evictions,
    slow_statistics,
)
from tests.cache.traces import random_trace

HIDDEN, H, F = 5, len(HORIZONS), len(NAMES)


def drawn(layers=LAYERS, experts=EXPERTS, seed=0):
    """Random weights under the names of a file of `ml_forecast`."""
    rng = np.random.default_rng(seed)
    shapes = {
        "general": (H, F),
        "value": (H,),
        "layer": (layers, H, F),
        "rows": (layers, LOOKED_BACK, experts, HIDDEN),
        "neighbours": (layers, len(NEIGHBOURS), experts, HIDDEN),
        "hidden_bias": (layers, HIDDEN),
        "out": (layers, HIDDEN, H * experts),
        "out_bias": (layers, H * experts),
    }
    return {name: rng.normal(0, 0.7, shape).astype(np.float32) for name, shape in shapes.items()}


@pytest.fixture
def write(tmp_path):
    def write(tensors, name="w"):
        path = tmp_path / f"{name}.safetensors"
        save_weights(path, "ml_forecast", LAYOUT, tensors, {})
        return str(path)

    return write


def slow_features(trace, layer):
    """[T, E, F], written from the names of the features."""
    found = np.ones((trace.steps, EXPERTS, F))
    found[:, :, : len(DECAYS) + len(FOLLOWING)] = slow_statistics(trace, layer, DECAYS)
    for step in range(trace.steps):
        for expert in range(EXPERTS):
            found[step, expert, -2] = expert in trace.experts[step, layer]
    return found


def slow_added(trace, layer, tensors):
    """[T, H, E] log-odds from the description: the net on last steps and layers around."""
    found = np.zeros((trace.steps, H, EXPERTS))
    for step in range(trace.steps):
        hidden = tensors["hidden_bias"][layer].astype(float)
        for back in range(min(LOOKED_BACK, step + 1)):
            for chosen in trace.experts[step - back, layer]:
                hidden = hidden + tensors["rows"][layer, back, chosen]
        for neighbour, (up, back) in enumerate(NEIGHBOURS):
            if 0 <= layer + up < LAYERS and step >= back:
                ids = trace.experts[step - back, layer + up]
                hidden = hidden + tensors["neighbours"][layer, neighbour, ids].sum(axis=0)
        hidden = hidden / (1 + np.exp(-hidden))
        found[step] = (hidden @ tensors["out"][layer] + tensors["out_bias"][layer]).reshape(H, EXPERTS)
    return found


class SlowForecast:
    """One layer's forecast from the description: chance, weighed features and the weighed net; `advance` and
    `within` in the order of steps. Learns from experts noted after each step that was asked for.
    """

    def __init__(self, trace, layer, tensors, learning_rate=LEARNING_RATE):
        self.used = (trace.experts[:, layer, :, None] == np.arange(EXPERTS)).any(axis=1)
        alike, added = slow_features(trace, layer), slow_added(trace, layer, tensors)
        self.x = [np.append(alike, added[:, i, :, None], axis=2) for i in range(H)]  # H of [T, E, F + 1]
        self.weight = [np.append(row, 1.0) for row in tensors["layer"][layer].astype(float)]
        self.squares = [np.full(F + 1, FIRST_SQUARES) for _ in HORIZONS]
        self.rate, self.step, self.asked, self.noted, self.following = learning_rate, -1, False, [], 0

    def advance(self):
        """The next step's experts become known."""
        for noted, expert in self.noted:
            if self.rate and noted == self.step - HORIZONS[-1]:
                self.learn(noted, expert)
        if self.asked:
            experts = (self.following + np.arange(min(NOTED, EXPERTS))) % EXPERTS
            self.noted += [(self.step, expert) for expert in experts]
            self.following = (experts[-1] + 1) % EXPERTS
        self.step, self.asked = self.step + 1, False

    def within(self):
        """[H, E]: how likely each expert is used within each horizon after this step."""
        self.asked = True
        return np.array([self.p(i, self.step) for i in range(H)])

    def p(self, i, step):
        unused = (1 - TOP_K / EXPERTS) ** HORIZONS[i]
        odds = np.log((1 - unused) / unused) + self.x[i][step] @ self.weight[i]
        return 1 / (1 + np.exp(-odds))

    def learn(self, step, expert):
        for i, horizon in enumerate(HORIZONS):
            error = self.p(i, step)[expert] - self.used[step + 1 : step + 1 + horizon, expert].any()
            gradient = error * self.x[i][step, expert]
            self.squares[i] = self.squares[i] + gradient**2
            self.weight[i] = self.weight[i] - self.rate * gradient / np.sqrt(self.squares[i])


def slow_policy(trace, layer, tensors, learning_rate):
    """Evictions of a layer's cache, which asks for the forecast where an expert has to leave."""
    forecast = SlowForecast(trace, layer, tensors, learning_rate)
    value = tensors["value"].astype(float)

    def score(step, expert):
        while forecast.step < step:
            forecast.advance()
        return (value @ forecast.within())[expert]

    return slow_evictions(trace, layer, score)


@pytest.mark.slow
def test_the_policy_evicts_by_the_forecast_as_described(write):
    trace, tensors = random_trace(3, steps=60), drawn()
    path, found = write(tensors), {}
    for rate in (0.0, LEARNING_RATE, 1.0):
        live = live_evictions(trace, f"ml_forecast:weights={path},learning_rate={rate}")
        assert live == [slow_policy(trace, layer, tensors, rate) for layer in range(LAYERS)]
        found[rate] = live
    assert found[0.0] != found[1.0]
    assert found[LEARNING_RATE] == live_evictions(trace, f"ml_forecast:weights={path}")
    for layer in range(LAYERS):
        features_TEF = forecast_features(*requested(trace, layer), EXPERTS)
        assert np.allclose(features_TEF, slow_features(trace, layer), atol=1e-5)


@pytest.mark.slow
def test_what_is_learned_while_running_mends_nets_of_another_model(write):
    """Nets that say nothing true cost hits at first; the factor of the net then falls."""
    rng = np.random.default_rng(8)
    logits = rng.normal(0, 2, (LAYERS, EXPERTS)) + rng.gumbel(size=(3000, LAYERS, EXPERTS))
    ids = np.argsort(-logits, axis=2)[..., :TOP_K].astype(np.uint16)
    trace = as_decode(RoutingTrace(ids, np.ones(3000, np.uint8), np.zeros(3000, np.int32), EXPERTS))
    path = write(drawn())
    hits = [
        replay(trace, policy, CAPACITY, resamples=0).hit_rate
        for policy in (f"ml_forecast:weights={path},learning_rate=0", f"ml_forecast:weights={path}", "lfru")
    ]
    assert hits[0] + 0.01 < hits[2] < hits[1]


def test_a_learning_rate_beyond_its_range_is_refused():
    for rate in (-0.1, 1.5):
        with pytest.raises(UserError, match="learning_rate must be from 0 to 1"):
            replay(random_trace(0), f"ml_forecast:learning_rate={rate}", 6)


@pytest.mark.slow
@pytest.mark.parametrize("shape", [(LAYERS + 1, EXPERTS), (LAYERS, EXPERTS + 1)])
def test_on_another_model_only_what_serves_every_model_counts(write, shape):
    """The nets are of one model: elsewhere the file does what one without hidden units does."""
    trace, tensors = random_trace(4, steps=80), drawn(*shape)
    silent = {name: np.zeros_like(array) for name, array in drawn().items()}
    silent |= {"general": tensors["general"], "value": tensors["value"]}
    silent["layer"] = np.repeat(tensors["general"][None], LAYERS, axis=0)
    found = [
        live_evictions(trace, f"ml_forecast:weights={write(each, n)}")
        for n, each in (("a", tensors), ("b", silent))
    ]
    assert found[0] == found[1]


@pytest.mark.slow
def test_predictor_and_quality_are_of_the_same_forecast(write):
    trace = random_trace(5, steps=60, prefill=0.0)
    tensors, decoded = drawn(), as_decode(trace)
    path = write(tensors)
    predictor: Any = make_predictor(f"forecast:weights={path}", LAYERS, EXPERTS)
    assert not predictor.predict(0).any()
    used_TLE = (trace.experts[..., None] == np.arange(EXPERTS)).any(axis=2)
    rows = {(row.predictor, row.horizon_tokens): row for row in forecast_quality(trace, path)}
    slow = [SlowForecast(decoded, layer, tensors) for layer in range(LAYERS)]
    p_LHTE = [np.array(list(all_steps(forecast))).swapaxes(0, 1) for forecast in slow]
    for step in range(trace.steps):
        for layer, p_HTE in enumerate(p_LHTE):
            predictor.watch(layer, used_TLE[step, layer])
            assert np.allclose(predictor.predict(layer), p_HTE[0, step], atol=1e-5)
            later = 1 - (1 - p_HTE[-1, step]) ** (1 / HORIZONS[-1])
            assert np.allclose(predictor.predict_later(layer), later, atol=1e-5)
    for horizon in HORIZONS:
        row, i = rows["ml_forecast", horizon], HORIZONS.index(horizon)
        layers = [slow_quality(p_LHTE[n][i], used_TLE[:, n], horizon) for n in range(LAYERS)]
        expected = np.array(layers).mean(axis=0).tolist()
        assert (row.log_loss, row.recall_at_k, row.recall_at_2k) == pytest.approx(tuple(expected), abs=1e-4)
        assert row.tokens == trace.steps - horizon and 0 <= row.calibration_error <= 1
        assert rows[SHARE, horizon].recall_at_2k >= rows[SHARE, horizon].recall_at_k


def all_steps(forecast):
    """T of [H, E]"""
    for _ in range(len(forecast.used)):
        forecast.advance()
        yield forecast.within()


def slow_quality(p_TE, used_TE, horizon):
    """(log-loss, recall at K, recall at 2K) of one layer, step by step."""
    loss, needed, recalled, recalled_2k = [], 0, 0, 0
    for step in range(len(p_TE) - horizon):
        within = used_TE[step + 1 : step + 1 + horizon].any(axis=0)
        p = np.clip(p_TE[step], 1e-4, 1 - 1e-4)
        loss += [-np.log(p[e] if within[e] else 1 - p[e]) for e in range(EXPERTS)]
        best = sorted(range(EXPERTS), key=lambda e: -p[e])
        needed += within.sum()
        recalled += sum(within[e] for e in best[: within.sum()])
        recalled_2k += sum(within[e] for e in best[: 2 * within.sum()])
    return float(np.mean(loss)), recalled / needed, recalled_2k / needed


@given(st.integers(0, 2**32 - 1), st.integers(1, 5))
@settings(max_examples=20, deadline=None)
def test_use_within_a_horizon_is_the_union_of_its_steps(seed, horizon):
    used_TE = np.random.default_rng(seed).random((12, 4)) < 0.3
    found = used_within(used_TE, horizon)
    assert len(found) == 12 - horizon
    for step, row in enumerate(found):
        assert (row == used_TE[step + 1 : step + 1 + horizon].any(axis=0)).all()
    longer = used_within(used_TE, horizon + 1)
    assert (found[: len(longer)] <= longer).all()


def test_too_short_a_trace_cannot_be_judged():
    with pytest.raises(UserError, match="more than 8 decoded tokens"):
        forecast_quality(random_trace(0, steps=8, prefill=0.0))


@pytest.mark.parametrize("broken", ["rows", "out", "layer", "general"])
def test_weights_of_a_wrong_shape_are_refused(write, broken):
    tensors = drawn()
    tensors[broken] = tensors[broken][..., :-1]
    with pytest.raises(UserError, match=r"w\.safetensors: tensor '"):
        replay(random_trace(0), f"ml_forecast:weights={write(tensors)}", 6)


@pytest.mark.parametrize("where", ["predictor", "lookahead"])
def test_watermark_placement_takes_the_forecast_of_later_runs(write, where):
    """What is said of later runs changes the value of an expert; other predictors say the same of both."""
    from dwellmoe.cache.device import PlacementConstants
    from dwellmoe.cache.tiers.watermark.placement import Tier
    from dwellmoe.cache.tiers.watermark.watermark_cache import WatermarkCache

    path = write(drawn())
    spec = f"forecast:weights={path}"
    constants = PlacementConstants(lookahead="")
    constants = dataclasses.replace(constants, **{where: spec})
    cache = WatermarkCache((1,) * LAYERS, EXPERTS, (Tier(9, 1.0), Tier(0, 1.0)), constants)
    predictor: Any = make_predictor(f"forecast:weights={path}", LAYERS, EXPERTS)
    trace: RoutingTrace = random_trace(6, steps=20)
    for row in trace.experts:
        for layer in range(LAYERS):
            cache.request(layer, row[layer].tolist())
            predictor.watch(layer, np.isin(np.arange(EXPERTS), row[layer]))
            assert np.array_equal(cache._next_LE[layer], predictor.predict(layer))
            assert np.array_equal(cache._prior_LE[layer], predictor.predict_later(layer))
    assert not np.allclose(cache._next_LE, cache._prior_LE)
