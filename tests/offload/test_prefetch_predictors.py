"""Prefetch predictors in a live engine: text does not depend on them; they predict as the simulator's do."""

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch

from dwellmoe.cache.prediction import used_of
from dwellmoe.cache.predictors import make_predictor
from dwellmoe.cache.recorded_predictions import RecordedPredictions, digest_of
from dwellmoe.cache.tiers.watermark.live import WatermarkDevice
from dwellmoe.cache.trace import DECODE, RoutingTrace
from dwellmoe.errors import UserError
from dwellmoe.families import find_moe_layers
from dwellmoe.offload import EngineSettings
from dwellmoe.offload.check_settings import check_settings, live_predictor_names
from dwellmoe.offload.prefetch_predictors import NextLayerPredictor, likeliest
from dwellmoe.routing.gate_ahead import margins_ahead
from dwellmoe.routing.scoutgate import (
    PADDING,
    WINDOW,
    LastTokens,
    ScoutGate,
    predict_scoutgate,
    save_scoutgate,
)
from tests.offload.workbench import engine_of, prompt, resident, tiers

pytestmark = pytest.mark.slow

ANSWER = {"max_new_tokens": 8, "do_sample": False, "eos_token_id": None}


@pytest.fixture(scope="module")
def scout_file(tmp_path_factory):
    model, path = resident("olmoe"), str(tmp_path_factory.mktemp("scout") / "s.safetensors")
    layers = find_moe_layers(model)
    torch.manual_seed(0)
    gate = ScoutGate(model.get_input_embeddings().weight.detach(), len(layers), layers[0].num_experts)
    torch.nn.init.normal_(gate.bias, std=3)  # so that some experts are nearly certain
    save_scoutgate(gate, path, "tiny")
    return path, gate


def spec_of(name: str, scout_file: tuple) -> str:
    return f"{name}:weights={scout_file[0]}" if name.endswith("scoutgate") else name


@pytest.fixture
def predictions(monkeypatch):
    """(layer, requested experts, predicted experts) of every prediction while decoding, in order."""
    log, predict_next = [], NextLayerPredictor.predict_next

    def spy(self, layer, requested):
        predicted = predict_next(self, layer, requested)
        log.append((layer, list(requested), predicted))
        return predicted

    monkeypatch.setattr(NextLayerPredictor, "predict_next", spy)
    return log


@pytest.mark.parametrize("name", live_predictor_names())
@pytest.mark.parametrize("rows", [1, 2])
def test_text_does_not_depend_on_the_predictor(name, rows, scout_file):
    spec, ids = spec_of(name, scout_file), prompt(9, rows)
    model, engine = engine_of("olmoe", prefetch_budget=2, prefetch_predictor=spec)
    with engine:
        assert torch.equal(model.generate(ids, **ANSWER), resident("olmoe").generate(ids, **ANSWER))
        assert engine.statistics.prefetch_issued > 0


def test_scoutgate_predicts_live_what_it_predicts_for_a_trace(scout_file, predictions):
    path, gate = scout_file
    model, engine = engine_of("olmoe", prefetch_budget=2, prefetch_predictor=f"scoutgate:weights={path}")
    ids = []
    with engine:
        for seed, tokens in ((0, 9), (1, 3)):  # the second prompt is shorter than a window
            ids.append(model.generate(prompt(tokens, 1, seed), **ANSWER)[0, :-1])
    layers, experts, top_k = len(engine.layers), engine.layers[0].num_experts, 2
    phase = np.concatenate([np.arange(len(row)) >= tokens for row, tokens in zip(ids, (9, 3), strict=True)])
    request = np.repeat([0, 1], [len(row) for row in ids]).astype(np.int32)
    experts_SLK = np.tile(np.arange(top_k, dtype=np.uint16), (len(phase), layers, 1))
    token_ids = torch.cat(ids).numpy().astype(np.int32)
    trace = RoutingTrace(experts_SLK, phase.astype(np.uint8), request, experts, token_ids=token_ids)
    p_TLE = predict_scoutgate(gate, trace)
    assert len(predictions) == len(p_TLE) * layers and (trace.phase == DECODE).sum() == len(p_TLE)
    for i, (layer, requested, predicted) in enumerate(predictions):
        last = layer + 1 == layers
        assert predicted == ([] if last else likeliest(p_TLE[i // layers, layer + 1], len(requested)))


@pytest.mark.parametrize("name", ["habits", "transition", "ewma:alpha=0.5", "last"])
def test_predictors_predict_live_what_they_predict_for_a_trace(name, predictions):
    model, engine = engine_of("olmoe", prefetch_budget=2, prefetch_predictor=name)
    with engine:
        for seed in range(2):
            model.generate(prompt(9, 1, seed), **ANSWER)
    layers, experts = len(engine.layers), engine.layers[0].num_experts
    replayed = make_predictor(name, layers, experts)
    for i, (layer, requested, predicted) in enumerate(predictions):
        if i in (0, len(predictions) // 2):
            replayed.start()
        replayed.watch(layer, np.isin(np.arange(experts), requested))
        expected = [] if layer + 1 == layers else likeliest(replayed.predict(layer + 1), len(requested))
        assert predicted == expected


@pytest.mark.parametrize("share", [0.0, 0.25])
def test_gate_ahead_counts_the_uses_of_its_ranks_and_is_fused_with_scoutgate(share, scout_file, predictions):
    path, gate = scout_file
    spec = f"gate_ahead+scoutgate:weights={path},share={share}"
    model, engine = engine_of("olmoe", prefetch_budget=2, prefetch_predictor=spec)
    ids = []
    with engine:
        engine.record()
        for seed in range(2):
            ids.append(model.generate(prompt(9, 1, seed), **ANSWER)[0, :-1])
        trace = dataclasses.replace(engine.trace(), token_ids=torch.cat(ids).numpy().astype(np.int32))
    layers = find_moe_layers(resident("olmoe"))
    margin_TLE, scout_TLE = margins_ahead(resident("olmoe"), layers, trace), predict_scoutgate(gate, trace)
    used_TLE, top_k = np.concatenate(used_of(trace)), layers[0].top_k
    assert len(predictions) == used_TLE.shape[0] * len(layers)
    for i, (layer, requested, predicted) in enumerate(predictions):
        token, following = i // len(layers), layer + 1
        if following == len(layers):
            assert predicted == []
            continue
        order_TE = np.argsort(-margin_TLE[: token + 1, following], axis=1)
        used_by_rank = [used_TLE[t, following, order_TE[t]] for t in range(token)]
        counted_in_advance = 4.0 * (np.arange(used_TLE.shape[2]) < top_k)  # half of the first eight tokens
        gate_E = np.empty(used_TLE.shape[2])
        gate_E[order_TE[token]] = (counted_in_advance + np.sum(used_by_rank, axis=0)) / (8 + token)
        fused_E = (1 - share) * gate_E + share * scout_TLE[token, following]
        assert predicted == likeliest(fused_E, len(requested))


@pytest.mark.parametrize("name", ["gate_ahead", "gate_ahead+scoutgate"])
def test_placement_uses_the_gate_ahead(name, scout_file):
    seen = []
    for ahead in ("", spec_of(name, scout_file)):
        model, engine = engine_of(
            "olmoe", placement_predictor=ahead, decode_policy="placement", ram_budget="6"
        )
        ids, placed = prompt(9), []
        with engine:
            for tokens in range(1, 9):
                expected = resident("olmoe").generate(ids, **ANSWER | {"max_new_tokens": tokens})
                assert torch.equal(model.generate(ids, **ANSWER | {"max_new_tokens": tokens}), expected)
                placed.append(tiers(engine))
        seen.append(placed)
    assert not np.array_equal(*seen)


def test_hooks_on_routers_go_with_the_engine():
    model, engine = engine_of(
        "olmoe", prefetch_budget=2, decode_policy="placement", placement_predictor="gate_ahead"
    )
    routers = [model.get_submodule(layer.router) for layer in find_moe_layers(model)]
    assert sum(len(router._forward_pre_hooks) for router in routers) == 2 * (len(routers) - 1)
    engine.close()
    assert not any(router._forward_pre_hooks for router in routers)


def test_placement_moves_live_as_it_does_with_predictions_beside_a_trace(scout_file, tmp_path):
    path, gate = scout_file
    settings: dict[str, Any] = {"decode_policy": "placement", "prefill_handoff": "none", "ram_budget": "6"}
    model, engine = engine_of("olmoe", placement_predictor=f"scoutgate:weights={path}", **settings)
    ids, seen = [], []
    with engine:
        engine.record()
        for seed in range(3):
            ids.append(model.generate(prompt(9, 1, seed), **ANSWER)[0, :-1])
            seen.append(tiers(engine))
        trace, counts = engine.trace(), engine.hit_counts
    trace = dataclasses.replace(trace, token_ids=torch.cat(ids).numpy().astype(np.int32))
    early = predict_scoutgate(gate, trace).astype(np.float32)
    file, usual = tmp_path / "p.safetensors", np.zeros(early.shape[1:], np.float32)
    RecordedPredictions(usual, early, None, digest_of(trace), "scoutgate").save(file)
    layers, experts = len(engine.layers), engine.layers[0].num_experts
    recorded = make_predictor(f"recorded:file={file}", layers, experts)
    recorded.follow(trace)
    predicting, plain = (WatermarkDevice(layers, experts, 2, 6, ahead) for ahead in (recorded, None))
    replays: dict[str, list] = {"predicting": [], "plain": []}
    for row in np.flatnonzero(trace.phase == DECODE):
        for name, device in (("predicting", predicting), ("plain", plain)):
            for layer in range(layers):
                device.request(layer, trace.experts[row, layer].tolist())
            if row + 1 == trace.steps or trace.request[row + 1] != trace.request[row]:
                replays[name].append(device.tier.copy())
    assert np.array_equal(seen, replays["predicting"]) and not np.array_equal(seen, replays["plain"])
    assert counts._asdict() == predicting.counts()


def test_last_tokens_leave_padding_out_and_begin_anew():
    tokens = LastTokens()
    assert tokens.add(torch.tensor([[5]]), fresh=False) is None
    first = tokens.add(torch.tensor([[PADDING, 4, 5], [6, 7, 8]]), fresh=True)
    assert first is not None
    assert first.tolist() == [[PADDING] * (WINDOW - 2) + [4, 5], [PADDING] * (WINDOW - 3) + [6, 7, 8]]
    second = tokens.add(torch.arange(20, 38).reshape(2, 9), fresh=False)
    assert second is not None and second.tolist() == [list(range(21, 29)), list(range(30, 38))]
    assert tokens.add(None, fresh=False) is None and tokens.add(torch.tensor([[1], [2]]), fresh=False) is None


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (
            "oracle",
            "unknown prefetch predictor 'oracle': choose from ewma, forecast, gate_ahead",
        ),
        ("recorded:file=x", "unknown prefetch predictor 'recorded'"),
        ("scoutgate", "give its weights, scoutgate:weights=FILE"),
        ("gate_ahead:x=1", "unknown option 'x'"),
        ("scoutgate:x=1", "unknown option 'x': choose from weights"),
        ("gate_ahead+scoutgate:share=0.5", r"give its weights, gate_ahead\+scoutgate:weights=FILE"),
        ("gate_ahead+scoutgate:weights=F,share=2", "share 2.0 must be between 0 and 1"),
    ],
)
def test_mistakes_are_refused_before_a_model_is_loaded(spec, message):
    with pytest.raises(UserError, match=message):
        check_settings(EngineSettings(prefetch_predictor=spec))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"placement_predictor": "habits"},
            "--placement_predictor has no effect without --decode_policy placement",
        ),
        (
            {"placement_predictor": "oracle"},
            "unknown placement predictor 'oracle': choose from ewma, forecast, gate_ahead",
        ),
        ({"placement_predictor": "scoutgate"}, "--placement_predictor scoutgate: give its weights"),
    ],
)
def test_mistakes_about_placement_are_refused(settings, message):
    with pytest.raises(UserError, match=message):
        check_settings(EngineSettings(**settings))


def test_weights_of_another_model_are_refused(tmp_path):
    gate = ScoutGate(torch.zeros(4, 4), 2, 8)
    save_scoutgate(gate, tmp_path / "s.safetensors", "other")
    for spec, message in (
        (f"scoutgate:weights={tmp_path / 's.safetensors'}", "ScoutGate of another model: 'layer'"),
        ("scoutgate:weights=none.safetensors", "none.safetensors: cannot be read"),
        ("ewma:alpha=0", "alpha must be above 0"),
    ):
        with pytest.raises(UserError, match=message):
            engine_of("olmoe", prefetch_budget=2, prefetch_predictor=spec)
