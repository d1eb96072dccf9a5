"""An evaluation that is stopped goes on where it was, and gives the report of one that was not."""

import json
import pickle
import shutil

import pytest

from dwellmoe.evaluation import measure
from dwellmoe.evaluation.kept_batches import PREFIX, KeptBatches
from dwellmoe.evaluation.ranks import Ranks
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

    for name in ("_score", "_generate", "_rank"):
        monkeypatch.setattr(measure, name, counting(getattr(measure, name)))
    return ran


QUICK = {"policies": "lru", "bootstrap_samples": 50}
REROUTED = {"routing_strategy": "margin", "expert_budget": "50%", "eval_batch_size": 3}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("changes", "repeated"),
    [({}, 0), (REROUTED, 2), ({"expert_budget": "50%"}, 5)],
    ids=["in memory", "rerouted", "engine"],
)
def test_a_stopped_evaluation_goes_on_with_the_same_report(
    workspace, one_thread, tmp_path, monkeypatch, capsys, changes, repeated
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


def test_other_weights_are_measured_anew(workspace, one_thread, tmp_path, monkeypatch, capsys):
    adapter = shutil.copytree(workspace / "tuned" / "checkpoint-10", tmp_path / "adapter")
    changes = {"results_dir": tmp_path / "results", "lora_save_path": adapter}
    with monkeypatch.context() as patch:
        stop_after(patch, 3)
        with pytest.raises(KeyboardInterrupt):
            evaluate(parse(options(workspace, **changes)), Ranks())
    shutil.copy(workspace / "control" / "adapter_model.safetensors", adapter)
    with monkeypatch.context() as patch:
        stop_after(patch, 1)
        with pytest.raises(KeyboardInterrupt):
            evaluate(parse([*options(workspace, **changes), "--resume", "True"]), Ranks())
    assert "going on with 0 batches" in capsys.readouterr().out


class Bomb:
    def __reduce__(self):
        return print, ("boom",)


@pytest.mark.parametrize("content", [pickle.dumps(Bomb()), pickle.dumps(Ranks()), b"", b"text"])
def test_a_file_that_holds_no_measurement_is_measured_again(tmp_path, capsys, content):
    (tmp_path / "x.pickle").write_bytes(content)
    kept = KeptBatches(tmp_path, resume=True)
    assert kept.get("x") is None and kept.get_or("x", lambda: [1]) == [1] == kept.get("x")
    assert "boom" not in capsys.readouterr().out
