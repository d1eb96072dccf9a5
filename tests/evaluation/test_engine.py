"""A whole evaluation, and a chat, with the experts in a cache: the numbers of the model in memory."""

import io
import json
import sys
from dataclasses import replace

import pytest
import torch

from dwellmoe.errors import UserError
from dwellmoe.evaluation.ranks import Ranks
from dwellmoe.loading import load_model, load_model_with_cache
from dwellmoe.offload import engine_of
from dwellmoe.settings.engine import EngineSettings
from dwellmoe.settings.model import ModelSettings
from inference import answer_one, evaluate, main, parse
from tests.data.stand_ins import WORDS
from tests.evaluation.workspace import options
from tests.tiny_models import tiny_model

pytestmark = pytest.mark.slow


def report_of(workspace, folder, **changes):
    settings = parse(options(workspace, results_dir=folder, dtype="float32", choice_limit=2, **changes))
    evaluate(settings, Ranks())
    return json.loads((folder / "report.json").read_text())


@pytest.fixture(scope="module")
def reports(workspace, one_thread, tmp_path_factory):
    folder = tmp_path_factory.mktemp("engine")
    plain = report_of(workspace, folder / "plain", eval_batch_size=1)
    return plain, report_of(workspace, folder / "cached", expert_budget="3", prefill_buffer="2")


def test_quality_is_that_of_the_model_in_memory(reports):
    plain, cached = reports
    for before, after in zip(plain["quality"], cached["quality"], strict=True):
        assert after["variant"] == before["variant"]
        assert after["perplexity"] == pytest.approx(before["perplexity"], rel=1e-5)
        assert after["accuracy"] == before["accuracy"]


def test_every_variant_has_a_row_of_the_engine(reports):
    plain, cached = reports
    assert "engine" not in plain
    assert [row["variant"] for row in cached["engine"]] == ["base", "control", "tuned"]
    for row in cached["engine"]:
        assert row["capacity"] == 3 and row["decode"]["tokens"] > 0 and row["prefill"]["disk_loads"] > 0
        accesses = row["decode_cache"]["hits"] + row["decode_cache"]["misses"]
        assert row["decode_cache"]["hit_rate"] == row["decode_cache"]["hits"] / accesses


def test_a_chat_is_streamed_and_sampled(workspace, monkeypatch, capsys):
    given = [*options(workspace, expert_budget="3", temperature="0.7", seed="3"), "--chat_mode", "True"]
    monkeypatch.setattr(sys, "argv", ["inference.py", *given])
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"w1 w2 w3\n\xff\n")))
    main()
    output = capsys.readouterr().out
    assert "engine: first token" in output and "MB read" in output
    assert "line 2 of the chat is not UTF-8: byte 0xff at offset 0" in output


@pytest.mark.parametrize("spec", ["margin:loss=1", "cecar:fill=drop,tau=1"])
def test_one_answer_is_rerouted_by_the_engine_as_by_a_simulated_cache(workspace, tmp_path, spec):
    found = []
    for live in (True, False):
        given = {"model_name": workspace / "model", "use_lora": False, "dtype": "float32"}
        given |= {"expert_budget": "4", "routing_strategy": spec, "reroute_live": live}
        given |= {"input": "w1 w33 w5 w70", "max_new_tokens": 12, "json": tmp_path / f"{live}.json"}
        answer_one(parse([text for name, value in given.items() for text in (f"--{name}", str(value))]))
        found.append(json.loads((tmp_path / f"{live}.json").read_text()))
    live, simulated = (one["rerouting"] for one in found)
    assert found[0]["answer"] == found[1]["answer"]
    assert (live.pop("residency"), simulated.pop("residency")) == ("engine", "simulated")
    assert live == simulated and live["hits"] > 0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"reroute_live": True}, "--reroute_live True: .*--routing_strategy"),
        (
            {"reroute_live": True, "routing_strategy": "margin"},
            "--reroute_live True: give --input, --task_num or --chat_mode",
        ),
    ],
)
def test_live_rerouting_needs_a_strategy_and_one_answer(workspace, changes, message):
    with pytest.raises(UserError, match=message):
        parse(options(workspace, **changes))


def test_a_model_in_memory_has_no_engine(evaluated):
    assert engine_of(evaluated.model) is None


def test_auto_says_that_the_engine_computes_in_another_type(tmp_path, capsys):
    model = tiny_model("olmoe", vocab_size=len(WORDS), eos_token_id=1, pad_token_id=2)
    model.bfloat16().save_pretrained(tmp_path)
    settings, engine = ModelSettings(model_name=str(tmp_path)), EngineSettings(expert_budget="50%")
    in_memory, cached = load_model(settings), load_model_with_cache(settings, engine)
    assert (in_memory.dtype, cached.dtype) == (torch.float32, torch.bfloat16)
    assert "--dtype float32" in capsys.readouterr().err
    same = load_model_with_cache(replace(settings, dtype="float32"), engine)
    ids = torch.arange(4, 24)[None]
    with torch.no_grad():
        assert torch.allclose(in_memory(ids).logits, same(ids).logits, atol=1e-6)
    for model in (cached, same):
        engine_of(model).close()
    assert "--dtype" not in capsys.readouterr().err
