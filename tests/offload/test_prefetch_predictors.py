"""Who foresees the next layer's experts in a live engine: the same text whoever does, and what the
simulator's predictors would say.
"""

import dataclasses
from collections.abc import Sequence
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
from dwellmoe.offload.attach import check_settings
from dwellmoe.offload.prefetch_predictors import NAMES, PerPhase, likeliest
from dwellmoe.routing.gate_ahead import margins_ahead
from dwellmoe.routing.scoutgate import (
    PADDING,
    WINDOW,
    LastTokens,
    ScoutGate,
    predict_scoutgate,
    save_scoutgate,
)
from tests.offload.workbench import engine_of, prompt, resident

ANSWER = {"max_new_tokens": 8, "do_sample": False, "eos_token_id": None}


@pytest.fixture(scope="module")
def scout_file(tmp_path_factory):
    model, path = resident("olmoe"), str(tmp_path_factory.mktemp("scout") / "s.safetensors")
    layers = find_moe_layers(model)
    torch.manual_seed(0)
    gate = ScoutGate(model.get_input_embeddings().weight.detach(), len(layers), layers[0].num_experts)
    torch.nn.init.normal_(gate.bias, std=3)  # of some experts it is sure
    save_scoutgate(gate, path, "tiny")
    return path, gate


def spec_of(name: str, scout_file: tuple) -> str:
    return f"{name}:weights={scout_file[0]}" if name.endswith("scoutgate") else name


class Spy:
    """Notes what a prefetch_predictor was asked and said."""

    def __init__(self, inside: Any) -> None:
        self.inside, self.said = inside, []

    def look(self, layer: int, hidden_TD: torch.Tensor, asked: Sequence[int]) -> list[int]:
        found = self.inside.look(layer, hidden_TD, asked)
        self.said.append((layer, list(asked), found))
        return found


def spied(engine: Any) -> Spy:
    prefetch_predictor = engine.cached_experts.prefetch.prefetch_predictor
    assert isinstance(prefetch_predictor, PerPhase)
    prefetch_predictor.decode = Spy(prefetch_predictor.decode)
    return prefetch_predictor.decode


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("rows", [1, 2])
def test_text_is_the_same_whoever_foresees(name, rows, scout_file):
    spec, ids = spec_of(name, scout_file), prompt(9, rows)
    model, engine = engine_of("olmoe", prefetch_budget=2, prefetch_predictor=spec)
    with engine:
        assert torch.equal(model.generate(ids, **ANSWER), resident("olmoe").generate(ids, **ANSWER))
        assert engine.statistics.prefetch_issued > 0


def test_scoutgate_says_live_what_it_says_of_a_trace(scout_file):
    path, gate = scout_file
    model, engine = engine_of("olmoe", prefetch_budget=2, prefetch_predictor=f"scoutgate:weights={path}")
    ids = []
    with engine:
        spy = spied(engine)
        for seed, tokens in ((0, 9), (1, 3)):  # the second prompt is shorter than a window
            ids.append(model.generate(prompt(tokens, 1, seed), **ANSWER)[0, :-1])
    layers, experts, top_k = engine.live.layers, engine.live.experts, 2
    phase = np.concatenate([np.arange(len(row)) >= tokens for row, tokens in zip(ids, (9, 3), strict=True)])
    request = np.repeat([0, 1], [len(row) for row in ids]).astype(np.int32)
    experts_SLK = np.tile(np.arange(top_k, dtype=np.uint16), (len(phase), layers, 1))
    token_ids = torch.cat(ids).numpy().astype(np.int32)
    trace = RoutingTrace(experts_SLK, phase.astype(np.uint8), request, experts, token_ids=token_ids)
    said_TLE = predict_scoutgate(gate, trace)
    assert len(spy.said) == len(said_TLE) * layers and (trace.phase == DECODE).sum() == len(said_TLE)
    for number, (layer, asked, found) in enumerate(spy.said):
        token = number // layers
        last = layer + 1 == layers
        assert found == ([] if last else likeliest(said_TLE[token, layer + 1], len(asked)))


@pytest.mark.parametrize("name", ["habits", "transition", "ewma:alpha=0.5", "last"])
def test_predictors_say_live_what_they_say_of_a_trace(name):
    model, engine = engine_of("olmoe", prefetch_budget=2, prefetch_predictor=name)
    with engine:
        spy = spied(engine)
        for seed in range(2):
            model.generate(prompt(9, 1, seed), **ANSWER)
    replayed, layers = make_predictor(name, engine.live.layers, engine.live.experts), engine.live.layers
    for number, (layer, asked, found) in enumerate(spy.said):
        if number in (0, len(spy.said) // 2):
            replayed.start()
        used = np.isin(np.arange(engine.live.experts), asked)
        replayed.watch(layer, used)
        expected = [] if layer + 1 == layers else likeliest(replayed.predict(layer + 1), len(asked))
        assert found == expected


@pytest.mark.parametrize("share", [0.0, 0.25])
def test_gate_ahead_counts_what_its_places_were_worth_and_is_fused_with_scoutgate(share, scout_file):
    path, gate = scout_file
    spec = f"gate_ahead+scoutgate:weights={path},share={share}"
    model, engine = engine_of("olmoe", prefetch_budget=2, prefetch_predictor=spec)
    ids = []
    with engine:
        spy = spied(engine)
        engine.record()
        for seed in range(2):
            ids.append(model.generate(prompt(9, 1, seed), **ANSWER)[0, :-1])
        trace = dataclasses.replace(engine.trace(), token_ids=torch.cat(ids).numpy().astype(np.int32))
    layers = find_moe_layers(resident("olmoe"))
    margin_TLE, scout_TLE = margins_ahead(resident("olmoe"), layers, trace), predict_scoutgate(gate, trace)
    used_TLE, top_k = np.concatenate(used_of(trace)), layers[0].top_k
    assert len(spy.said) == used_TLE.shape[0] * len(layers)
    for number, (layer, asked, found) in enumerate(spy.said):
        token, following = number // len(layers), layer + 1
        if following == len(layers):
            assert found == []
            continue
        order_TE = np.argsort(-margin_TLE[: token + 1, following], axis=1)
        came_true = [used_TLE[t, following, order_TE[t]] for t in range(token)]
        trusted = 4.0 * (np.arange(used_TLE.shape[2]) < top_k)  # half of the first eight tokens
        said_E = np.empty(used_TLE.shape[2])
        said_E[order_TE[token]] = (trusted + np.sum(came_true, axis=0)) / (8 + token)
        fused_E = (1 - share) * said_E + share * scout_TLE[token, following]
        assert found == likeliest(fused_E, len(asked))


@pytest.mark.parametrize("name", ["gate_ahead", "gate_ahead+scoutgate"])
def test_placement_heeds_the_gate_ahead(name, scout_file):
    seen = []
    for ahead in ("", spec_of(name, scout_file)):
        model, engine = engine_of(
            "olmoe", placement_predictor=ahead, decode_policy="placement", ram_budget="6"
        )
        placed: Any = engine.live.split.cache
        ids, tiers = prompt(9), []
        with engine:
            for tokens in range(1, 9):
                expected = resident("olmoe").generate(ids, **ANSWER | {"max_new_tokens": tokens})
                assert torch.equal(model.generate(ids, **ANSWER | {"max_new_tokens": tokens}), expected)
                tiers.append(placed.tier.copy())
        seen.append(tiers)
    assert not np.array_equal(*seen)


def test_hooks_on_routers_go_with_the_engine():
    model, engine = engine_of(
        "olmoe", prefetch_budget=2, decode_policy="placement", placement_predictor="gate_ahead"
    )
    routers = [model.get_submodule(layer.router) for layer in find_moe_layers(model)]
    assert sum(len(router._forward_pre_hooks) for router in routers) == len(routers) - 1
    engine.close()
    assert not any(router._forward_pre_hooks for router in routers)


def test_placement_moves_live_as_it_does_with_predictions_beside_a_trace(scout_file, tmp_path):
    path, gate = scout_file
    settings: dict[str, Any] = {"decode_policy": "placement", "prefill_handoff": "none", "ram_budget": "6"}
    model, engine = engine_of("olmoe", placement_predictor=f"scoutgate:weights={path}", **settings)
    placed: Any = engine.live.split.cache
    ids, seen = [], []
    with engine:
        engine.record()
        for seed in range(3):
            ids.append(model.generate(prompt(9, 1, seed), **ANSWER)[0, :-1])
            seen.append(placed.tier.copy())
        trace = engine.trace()
    trace = dataclasses.replace(trace, token_ids=torch.cat(ids).numpy().astype(np.int32))
    early = predict_scoutgate(gate, trace).astype(np.float32)
    file, usual = tmp_path / "p.safetensors", np.zeros(early.shape[1:], np.float32)
    RecordedPredictions(usual, early, None, digest_of(trace), "scoutgate").save(file)
    layers, experts = engine.live.layers, engine.live.experts
    recorded = make_predictor(f"recorded:file={file}", layers, experts)
    recorded.follow(trace)
    told, untold = (WatermarkDevice(layers, experts, 2, 6, ahead) for ahead in (recorded, None))
    replays: dict[str, list] = {"told": [], "untold": []}
    for row in np.flatnonzero(trace.phase == DECODE):
        for name, device in (("told", told), ("untold", untold)):
            for layer in range(layers):
                device.request(layer, trace.experts[row, layer].tolist())
            if row + 1 == trace.steps or trace.request[row + 1] != trace.request[row]:
                replays[name].append(device.tier.copy())
    assert np.array_equal(seen, replays["told"]) and not np.array_equal(seen, replays["untold"])
    assert placed.counts() == told.counts()


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
    ("spec", "said"),
    [
        (
            "oracle",
            "unknown prefetch predictor 'oracle': choose from ewma, gate_ahead",
        ),
        ("recorded:file=x", "unknown prefetch predictor 'recorded'"),
        ("scoutgate", "give its weights, scoutgate:weights=FILE"),
        ("gate_ahead:x=1", "unknown option 'x'"),
        ("scoutgate:x=1", "unknown option 'x': choose from weights"),
        ("gate_ahead+scoutgate:share=0.5", r"give its weights, gate_ahead\+scoutgate:weights=FILE"),
        ("gate_ahead+scoutgate:weights=F,share=2", "share 2.0 must be between 0 and 1"),
    ],
)
def test_mistakes_are_told_before_a_model_is_loaded(spec, said):
    with pytest.raises(UserError, match=said):
        check_settings(EngineSettings(prefetch_predictor=spec))


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (
            {"placement_predictor": "habits"},
            "--placement_predictor has no effect without --decode_policy placement",
        ),
        ({"placement_predictor": "oracle"}, "unknown placement ahead 'oracle': choose from ewma, gate_ahead"),
        ({"placement_predictor": "scoutgate"}, "--placement_predictor scoutgate: give its weights"),
    ],
)
def test_mistakes_about_placement_are_told(settings, said):
    with pytest.raises(UserError, match=said):
        check_settings(EngineSettings(**settings))


def test_foreign_weights_are_told(tmp_path):
    gate = ScoutGate(torch.zeros(4, 4), 2, 8)
    save_scoutgate(gate, tmp_path / "s.safetensors", "other")
    for spec, said in (
        (f"scoutgate:weights={tmp_path / 's.safetensors'}", "ScoutGate of another model: 'layer'"),
        ("scoutgate:weights=none.safetensors", "none.safetensors: cannot be read"),
        ("ewma:alpha=0", "alpha must be above 0"),
    ):
        with pytest.raises(UserError, match=said):
            engine_of("olmoe", prefetch_budget=2, prefetch_predictor=spec)
