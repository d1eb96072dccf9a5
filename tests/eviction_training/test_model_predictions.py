"""Predictions that take the model: the order of their rows, what is fused, the command that writes them."""

import dataclasses
import json

import numpy as np
import pytest
import torch

from dwellmoe.cache.prediction import Calibration, used_of
from dwellmoe.cache.recorded_predictions import RecordedPredictions
from dwellmoe.cache.trace import DECODE
from dwellmoe.cli import simulate
from dwellmoe.errors import UserError
from dwellmoe.eviction_training.model_predictions import Source, record_predictions
from dwellmoe.families import find_moe_layers
from dwellmoe.routing import RouterTap, TraceRecorder
from dwellmoe.routing.gate_ahead import margins_ahead
from dwellmoe.routing.scoutgate import load_scoutgate, predict_scoutgate
from tests.cache.traces import random_trace
from tests.tiny_models import tiny_model


def of_the_model(model, seed: int, requests: int = 8, tokens: int = 10):
    """The true routing of random prompts, half of each counted as decoded, with token ids."""
    layers, draw = find_moe_layers(model), torch.Generator().manual_seed(seed)
    recorder = TraceRecorder(layers)
    valid = torch.ones(1, tokens)
    decoded = (torch.arange(tokens) >= tokens // 2).float()[None]
    ids = [torch.randint(3, 60, (1, tokens), generator=draw) for _ in range(requests)]
    for number, ids_1T in enumerate(ids):
        with torch.no_grad(), RouterTap(model, layers, [recorder]):
            model(ids_1T, use_cache=False)
        recorder.add([number], valid, decoded)
    trace = recorder.trace()
    return dataclasses.replace(trace, token_ids=torch.cat(ids, dim=1)[0].numpy().astype(np.int32))


@pytest.fixture(scope="module")
def source():
    model = tiny_model("olmoe")
    return Source.of(model, of_the_model(model, 0), of_the_model(model, 1))


def test_rows_are_the_decoded_ones_in_time_order(source):
    """Also where requests take turns."""
    turns = np.argsort(np.arange(source.trace.steps) % 10, kind="stable")
    mixed = {
        name: getattr(source.trace, name)[turns] for name in ("experts", "phase", "request", "token_ids")
    }
    trace = dataclasses.replace(source.trace, weights=None, gate_probs=None, **mixed)
    found, _, _ = record_predictions("gate_ahead", dataclasses.replace(source, trace=trace), "last")
    straight, _, _ = record_predictions("gate_ahead", source, "last")
    assert found.early is None and straight.early is None
    assert found.late is not None and straight.late is not None
    place = np.cumsum(source.trace.phase == DECODE) - 1
    of_turns = place[turns][trace.phase == DECODE]
    assert np.allclose(found.late, straight.late[of_turns], atol=1e-6)
    found.check_trace(trace)
    straight.check_trace(source.trace)


def test_gate_ahead_is_the_calibrated_margin(source):
    found, gate, facts = record_predictions("gate_ahead", source, "habits")
    layers = find_moe_layers(source.model)
    margins = [margins_ahead(source.model, layers, trace) for trace in (source.train, source.trace)]
    expected = Calibration(margins[0], np.concatenate(used_of(source.train)))(margins[1])
    assert found.late is not None and np.allclose(found.late, expected, atol=1e-6)
    assert gate is None and facts["beside"] == "habits" and 0 <= facts["eta"] <= 1


def test_the_command_writes_what_stall_reads(source, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("dwellmoe.loading.load_model", lambda settings: source.model)
    learned, trace, out = tmp_path / "a.safetensors", tmp_path / "b.safetensors", tmp_path / "p.safetensors"
    of_the_model(source.model, 0).save(learned)
    dataclasses.replace(source.trace, expert_bytes=(1000,) * source.trace.layers).save(trace)
    words = ["predict", "--trace", trace, "--learn", learned, "--model_name", "models/tiny-olmoe"]
    words += ["--out", out, "--predictor", "gate_ahead+scoutgate"]
    words += ["--scoutgate_out", tmp_path / "s.safetensors"]
    simulate.run([*map(str, words), "--json", "-"])
    facts = json.loads(capsys.readouterr().out)
    found = RecordedPredictions.load(out)
    assert found.predictor == "gate_ahead+scoutgate" and found.horizon == source.trace.layers
    found.check_trace(source.trace)
    embedding = source.model.get_input_embeddings().weight.detach()
    shape = source.trace.layers, source.trace.num_experts
    gate = load_scoutgate(str(tmp_path / "s.safetensors"), embedding, *shape)
    scout = predict_scoutgate(gate, source.trace)
    assert found.early is not None and np.allclose(found.early, scout, atol=1e-6)
    alone, _, _ = record_predictions("gate_ahead", source, "habits")
    share = facts["eta_scoutgate"]
    assert alone.late is not None and found.late is not None
    assert np.allclose(found.late, (1 - share) * alone.late + share * scout, atol=1e-6)
    device = tmp_path / "d.toml"
    speeds = "memory_gb_per_second = 1.0\nstorage_gb_per_second = 1.0"
    device.write_text(f'name = "d"\n{speeds}\n[placement]\nlookahead = "recorded:file={out}"\neta = 1.0\n')
    simulate.run(["stall", "--trace", str(trace), "--device", str(device), "--capacity", "50%",
                  "--tier_policies", "placement", "--json", "-"])  # fmt: skip
    assert json.loads(capsys.readouterr().out)["stall"][0]["tokens"] == found.tokens
    with pytest.raises(UserError, match="ScoutGate of another model"):
        load_scoutgate(str(tmp_path / "s.safetensors"), embedding[:, :8], *shape)


def test_what_cannot_be_predicted_is_reported(source):
    with pytest.raises(UserError, match="unknown predictor of a model 'oracle': choose from gate_ahead"):
        record_predictions("oracle", source, "habits")
    with pytest.raises(UserError, match="unknown predictor 'oracle'"):
        record_predictions("gate_ahead", source, "oracle")
    with pytest.raises(UserError, match="needs traces with token_ids"):
        record_predictions(
            "gate_ahead", dataclasses.replace(source, trace=random_trace(0, experts=8, top_k=2)), "last"
        )
    other = random_trace(0, layers=2, experts=8, top_k=2)
    with pytest.raises(UserError, match="2 layers x 8 experts is not of this model, which has 3 x 8"):
        record_predictions("gate_ahead", dataclasses.replace(source, trace=other), "last")
    ids = np.full(source.trace.steps, 10**6, np.int32)
    with pytest.raises(UserError, match="outside of the model's vocabulary of 64"):
        record_predictions(
            "gate_ahead",
            dataclasses.replace(source, trace=dataclasses.replace(source.trace, token_ids=ids)),
            "last",
        )


@pytest.mark.parametrize(("seed", "warns"), [(0, False), (5, True)])
def test_a_trace_of_other_weights_is_told(source, capsys, seed, warns):
    """Other weights of the same sizes: their predictions would be worthless without a word."""
    other = dataclasses.replace(source, model=tiny_model("olmoe", seed=seed))
    record_predictions("gate_ahead", other, "last")
    assert ("the trace is of other weights" in capsys.readouterr().err) == warns
