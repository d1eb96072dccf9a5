"""An evaluation that is stopped goes on where it was, and gives the report of one that was not."""

import json
import shutil

import numpy as np
import pytest

from dwellmoe.cache.tensor_file import write_tensors
from dwellmoe.errors import UserError
from dwellmoe.evaluation import measure
from dwellmoe.evaluation.answers.choices import ChoiceScore
from dwellmoe.evaluation.kept_batches import PREFIX, KeptBatches
from dwellmoe.evaluation.ranks import Ranks
from dwellmoe.evaluation.report import output
from dwellmoe.evaluation.teacher_forced import Score
from inference import evaluate, parse
from tests.evaluation.workspace import NOT_COMPARED, options


def report_of(folder):
    return json.loads((folder / "report.json").read_text()) | NOT_COMPARED


def stop_after(monkeypatch, batches):
    """Has the evaluation interrupted when it begins the next batch after so many; counts those that ran."""
    ran = []

    def counting(run):
        def counted(evaluated, batch, *rest):
            if len(ran) == batches:
                raise KeyboardInterrupt
            ran.append(run.__name__)
            return run(evaluated, batch, *rest)

        return counted

    for name in ("_score", "_generate", "_rank", "_write"):
        monkeypatch.setattr(measure, name, counting(getattr(measure, name)))
    return ran


@pytest.fixture
def no_figures(monkeypatch):
    """Which take a third of the time, and are not compared."""
    monkeypatch.setattr(output, "write_figures", lambda *_: {})


QUICK = {"policies": "lru", "bootstrap_samples": 50}
REROUTED = {"routing_strategy": "margin", "expert_budget": "50%", "eval_batch_size": 3}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("changes", "repeated"),
    [({}, 0), (REROUTED, 2), (REROUTED | {"free_running": 5}, 2), ({"expert_budget": "50%"}, 5)],
    ids=["in memory", "rerouted", "writing freely", "engine"],
)
def test_a_stopped_evaluation_goes_on_with_the_same_report(
    workspace, one_thread, no_figures, tmp_path, monkeypatch, capsys, changes, repeated
):
    changes = QUICK | changes
    whole, parts = ({**changes, "results_dir": tmp_path / name} for name in ("whole", "parts"))
    with monkeypatch.context() as patch:
        all_ran = stop_after(patch, None)
        evaluate(parse(options(workspace, **whole)), Ranks())
    before = 5
    with monkeypatch.context() as patch:
        stop_after(patch, before)
        with pytest.raises(KeyboardInterrupt):
            evaluate(parse(options(workspace, **parts)), Ranks())
    assert f"stopped: {before} batches are kept" in capsys.readouterr().out
    with monkeypatch.context() as patch:
        ran = stop_after(patch, None)
        evaluate(parse([*options(workspace, **parts), "--resume", "True"]), Ranks())
    assert len(ran) == len(all_ran) - before + repeated
    assert report_of(tmp_path / "parts") == report_of(tmp_path / "whole")
    assert not list((tmp_path / "parts").glob(f"{PREFIX}*"))


def test_an_evaluation_of_other_weights_or_settings_is_not_resumed(
    workspace, one_thread, tmp_path, monkeypatch, capsys
):
    adapter = shutil.copytree(workspace / "tuned" / "checkpoint-10", tmp_path / "adapter")
    changes = {"results_dir": tmp_path / "results", "lora_save_path": adapter}
    with monkeypatch.context() as patch:
        stop_after(patch, 3)
        with pytest.raises(KeyboardInterrupt):
            evaluate(parse(options(workspace, **changes)), Ranks())
    shutil.copy(workspace / "control" / "adapter_model.safetensors", adapter)
    with pytest.raises(UserError, match="keeps batches of another evaluation: weights of tuned was"):
        evaluate(parse([*options(workspace, **changes), "--resume", "True"]), Ranks())
    with pytest.raises(UserError, match="--seed was 42, is 7"):
        evaluate(parse([*options(workspace, **changes), "--seed", "7", "--resume", "True"]), Ranks())
    with monkeypatch.context() as patch:
        stop_after(patch, 1)
        with pytest.raises(KeyboardInterrupt):
            evaluate(parse(options(workspace, **changes)), Ranks())
    assert "stopped: 1 batches are kept" in capsys.readouterr().out


FOREIGN = {"value": json.dumps(["Popen", {"args": "true"}])}


@pytest.mark.parametrize("content", [FOREIGN, {"value": "[" * 100_000}, {}, b"", b"text"])
def test_a_file_that_holds_no_measurement_is_measured_again(tmp_path, content):
    path = tmp_path / "x.safetensors"
    path.write_bytes(content) if isinstance(content, bytes) else write_tensors(path, {}, content)
    kept = KeptBatches(tmp_path, resume=True)
    assert kept.get("x") is None and kept.get_or("x", lambda: [1]) == [1] == kept.get("x")


def test_a_kept_batch_with_a_changed_byte_is_measured_again(tmp_path, capsys):
    kept = KeptBatches(tmp_path, resume=True)
    kept.keep("x", {"sums": np.arange(600, dtype=np.float32)})
    path = tmp_path / "x.safetensors"
    content = bytearray(path.read_bytes())
    content[-100] ^= 1
    path.write_bytes(content)
    assert kept.get("x") is None
    assert f"'{path}' is damaged" in capsys.readouterr().err


def test_what_is_kept_comes_back_as_it_was(tmp_path):
    kept = KeptBatches(tmp_path, resume=True)
    result = [
        ChoiceScore(3, Score(nll=0.1 + 0.2, tokens=4, divergence=None)),
        {7: (np.float64(1 / 3), [True, "text", float("inf")])},
        {"sums": np.arange(6, dtype=np.uint16).reshape(2, 3), "none": np.zeros((0, 4), np.float32)},
    ]
    kept.keep("x", result)
    again = kept.get("x")
    assert again[:2] == result[:2] and isinstance(again[0], ChoiceScore)
    for name, array in result[2].items():
        assert again[2][name].dtype == array.dtype and np.array_equal(again[2][name], array)
    with pytest.raises(TypeError, match="Ranks"):
        kept.keep("y", Ranks())
