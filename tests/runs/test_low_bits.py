"""The script that prices experts in low bits: a whole tiny run, and how a stopped one goes on."""

import json
import sys

import pytest

from dwellmoe.errors import UserError
from dwellmoe.evaluation import measure
from runs import low_bits
from tests.evaluation.workspace import make_workspace


def arguments(folder, monkeypatch, **changes):
    given = {
        "json": folder / "found.json",
        "packed_dir": folder / "packed",
        "formats": "int8",
        "model_name": folder / "model",
        "lora_save_path": folder / "tuned" / "checkpoint-10",
        "dataset_name": folder / "task" / "task.toml",
        "dtype": "float32",
        "max_words_len": 64,
        "limit_evaluation": 3,
        "generate_limit": 1,
        "max_new_tokens": 4,
        "choice_limit": 0,
        "bootstrap_samples": 20,
        "expert_budget": "50%",
        "routing_strategy": "margin:loss=0.5",
    } | changes
    words = [part for name, value in given.items() for part in (f"--{name}", str(value))]
    monkeypatch.setattr(sys, "argv", ["low_bits.py", *words])


def forbidden(*_, **__):
    raise AssertionError("this was measured already")


@pytest.mark.slow
def test_a_stopped_run_goes_on_to_a_table_of_equal_bytes(tmp_path, monkeypatch, capsys):
    folder = make_workspace(tmp_path)
    arguments(folder, monkeypatch)
    with monkeypatch.context() as stopped:
        stopped.setattr(low_bits, "write_json", forbidden)
        with pytest.raises(AssertionError):
            low_bits.main()
    arguments(folder, monkeypatch, resume=True)
    with monkeypatch.context() as resumed:
        resumed.setattr(measure, "_score", forbidden)
        resumed.setattr(low_bits, "_answered", forbidden)
        low_bits.main()
    printed = capsys.readouterr().out
    assert printed.count("\n| `as_stored` |") == printed.count("\n| `int8` |") == 2 * 4
    assert not (folder / "found-unfinished").exists()
    found = json.loads((folder / "found.json").read_text())
    stored, packed = found["rows"][:4], found["rows"][4:]
    assert [(row["variant"], row["strategy"]) for row in packed] == [
        ("base", "none"),
        ("tuned", "none"),
        ("base", "margin:loss=0.5"),
        ("tuned", "margin:loss=0.5"),
    ]
    assert all(row["perplexity_ratio_as_stored"] == 1 for row in stored)
    for before, row in zip(stored, packed, strict=True):
        assert row["expert_bytes"] < before["expert_bytes"] and row["capacity"] > before["capacity"]
        assert row["capacity_bytes"] <= found["cache_bytes"]
        assert row["perplexity_ratio_as_stored"] == pytest.approx(row["perplexity"] / before["perplexity"])
        assert row["hit_rate"] > before["hit_rate"] or row["hit_rate"] == 1
        assert row["engine"]["tokens_per_second"] > 0
    assert stored[0]["perplexity"] != stored[1]["perplexity"] != stored[3]["perplexity"]


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"routing_strategy": "none"}, "--routing_strategy"),
        ({"formats": "as_stored"}, "--formats"),
        ({"formats": "int5"}, "int5"),
        ({"expert_budget": "1%"}, "--expert_budget"),
    ],
)
def test_what_cannot_be_is_named_before_anything_is_packed(tmp_path, monkeypatch, changes, named):
    folder = make_workspace(tmp_path)
    arguments(folder, monkeypatch, **changes)
    with pytest.raises(UserError, match=named):
        low_bits.main()
    assert not (folder / "packed").exists()
