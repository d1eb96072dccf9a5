"""Who foresees the next layer's experts in a live engine: the same text whoever does, and what the
simulator's predictors would say.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch

from errors import UserError
from expert_cache.placed_live import PlacedDevice
from expert_cache.predictors import make_predictor
from expert_cache.recorded_predictions import RecordedPredictions, digest_of
from expert_cache.trace import DECODE, RoutingTrace
from models import find_moe_layers
from offload import EngineSettings
from offload.attach import check_settings
from offload.foresight import NAMES, ByPhase, likeliest
from routing.scoutgate import PADDING, WINDOW, LastTokens, ScoutGate, predict_scoutgate, save_scoutgate
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
    return f"scoutgate:weights={scout_file[0]}" if name == "scoutgate" else name


class Spy:
    """Notes what a foresight was asked and said."""

    def __init__(self, inside: Any) -> None:
        self.inside, self.said = inside, []

    def look(self, layer: int, hidden_TD: torch.Tensor, asked: Sequence[int]) -> list[int]:
        found = self.inside.look(layer, hidden_TD, asked)
        self.said.append((layer, list(asked), found))
        return found


def spied(engine: Any) -> Spy:
    foresight = engine.cached_experts.prefetch.foresight
    assert isinstance(foresight, ByPhase)
    foresight.decode = Spy(foresight.decode)
    return foresight.decode


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


def test_placement_moves_live_as_it_does_with_predictions_beside_a_trace(scout_file, tmp_path):
    path, gate = scout_file
    settings: dict[str, Any] = {"decode_policy": "placement", "hand_over": "none", "ram_budget": "6"}
    model, engine = engine_of("olmoe", placement_ahead=f"scoutgate:weights={path}", **settings)
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
    told, untold = (PlacedDevice(layers, experts, 2, 6, ahead) for ahead in (recorded, None))
    replays: dict[str, list] = {"told": [], "untold": []}
    for row in np.flatnonzero(trace.phase == DECODE):
        for name, device in (("told", told), ("untold", untold)):
            for layer in range(layers):
                device.step(layer, trace.experts[row, layer].tolist())
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
    ],
)
def test_mistakes_are_told_before_a_model_is_loaded(spec, said):
    with pytest.raises(UserError, match=said):
        check_settings(EngineSettings(prefetch_predictor=spec))


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"placement_ahead": "habits"}, "--placement_ahead has no effect without --decode_policy placement"),
        ({"placement_ahead": "gate_ahead"}, "unknown placement ahead 'gate_ahead': choose from ewma, habits"),
        ({"placement_ahead": "scoutgate"}, "--placement_ahead scoutgate: give its weights"),
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
