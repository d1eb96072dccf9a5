"""Training beside experts in low bits, by the real command: resumed, merged, on two ranks, and evaluated."""

import json
import shutil
import sys

import pytest
import torch

from dwellmoe.base_model import BASE_FILE, check_base_model
from dwellmoe.loading import load_adapters, load_model
from dwellmoe.settings.model import ModelSettings
from tests.conftest import ROOT, quick_training
from tests.offload.workbench import prompt
from tests.test_launchers import logged_losses

pytestmark = pytest.mark.slow

FORMAT = ("--expert_format", "nf4")


@pytest.fixture
def options(tiny_checkpoint, sentences):
    return quick_training(tiny_checkpoint, sentences)


def test_a_run_is_resumed_recorded_and_merged(run_command, tmp_path, options, tiny_checkpoint, capsys):
    command = (sys.executable, ROOT / "main.py", *options, *FORMAT, "--gradient_checkpointing", "True")
    done = run_command(*command, "--save_merged", "True")
    assert done.returncode == 0, done.stderr[-3000:]
    out, once = tmp_path / "out", logged_losses(tmp_path / "out")
    assert json.loads((out / BASE_FILE).read_text())["expert_format"] == "nf4"
    assert "nf4" in (out / "README.md").read_text()

    whole = load_model(ModelSettings(str(tiny_checkpoint), dtype="float32"))
    ids = prompt()
    with torch.no_grad():
        expected = load_adapters(whole, {"tuned": str(out)})(ids).logits
        merged = load_model(ModelSettings(str(out / "merged"), dtype="float32"))(ids).logits
    torch.testing.assert_close(merged, expected, atol=1e-4, rtol=1e-4)

    check_base_model([str(out)], str(tiny_checkpoint), allow_other=False, expert_format="nf4")
    assert "nf4" not in capsys.readouterr().err
    check_base_model([str(out)], str(tiny_checkpoint), allow_other=False)
    assert "nf4" in capsys.readouterr().err

    for later in ("checkpoint-8", "checkpoint-12"):
        shutil.rmtree(out / later)
    done = run_command(*command, "--resume_from_checkpoint", "auto")
    assert done.returncode == 0, done.stderr[-3000:]
    assert logged_losses(out) == pytest.approx(once, abs=1e-6)
    other = run_command(*command[:-4], "--expert_format", "int8", "--resume_from_checkpoint", "auto")
    assert other.returncode == 2 and "expert_format" in other.stderr


def test_two_ranks_train(run_command, deepspeed, tmp_path, options):
    """ZeRO-2 sends all parameters from rank to rank before it begins; DDP: tests/test_launchers.py."""
    words = (ROOT / "main.py", *options, "--expert_format", "int8")
    done = run_command(*deepspeed, *words, timeout_seconds=600)
    assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]
    losses = logged_losses(tmp_path / "out")
    assert losses[max(losses)] < losses[min(losses)]


def test_zero_3_is_refused(run_command, options):
    zero3 = ("--deepspeed", ROOT / "configs" / "zero3.json")
    done = run_command(sys.executable, ROOT / "main.py", *options, *FORMAT, *zero3)
    assert done.returncode == 2
    assert "--expert_format: not under ZeRO-3" in done.stderr.strip().splitlines()[-1]


def test_an_evaluation_counts_the_bytes_that_are_held(run_command, tmp_path, options, tiny_checkpoint):
    """Of the plain model and of one in int8, without adapters."""
    expert_bytes = []
    for expert_format in ([], ["--expert_format", "int8"]):
        given = (*options[:4], "--use_lora", "False", "--split", "validation", "--max_words_len", "32")
        done = run_command(
            sys.executable, ROOT / "inference.py", *given, *expert_format, "--json", tmp_path / "found.json"
        )
        assert done.returncode == 0, done.stderr[-3000:]
        report = json.loads((tmp_path / "found.json").read_text())
        expert_bytes.append(report["model"]["expert_bytes"][0])
    assert expert_bytes[1] < 0.4 * expert_bytes[0]


def test_a_packed_model_trains_and_answers_as_any_other(run_command, tmp_path, options, tiny_checkpoint):
    """Packed, trained on, and its adapter used: with all experts in memory, out of a cache, and beside the
    weights that were packed.
    """
    packed, out = tmp_path / "packed", tmp_path / "out"
    done = run_command("dwellmoe", "pack", tiny_checkpoint, packed, "--format", "int4:group=32")
    assert done.returncode == 0, done.stderr[-3000:]
    done = run_command(sys.executable, ROOT / "main.py", *options, "--model_name", packed)
    assert done.returncode == 0, done.stderr[-3000:]
    assert json.loads((out / BASE_FILE).read_text())["expert_format"] == "int4:group=32"
    assert "int4:group=32" in (out / "README.md").read_text()
    answers, adapter = [], ("--lora_save_path", out)
    for model, more in ((packed, ()), (packed, ("--expert_budget", "3")), (tiny_checkpoint, ())):
        words = ("--input", "a", "--max_new_tokens", "4", "--policies", "lru", "--dtype", "float32")
        done = run_command(
            sys.executable, ROOT / "inference.py", "--model_name", model, *adapter, *words, *more
        )
        assert done.returncode == 0, done.stderr[-3000:]
        assert ("int4:group=32" in done.stderr) == (model == tiny_checkpoint)
        answers.append(done.stdout.splitlines()[0])
    assert answers[0] == answers[1]
    for wrong in (("--save_merged", "True"), ("--use_lora", "False")):
        done = run_command(sys.executable, ROOT / "main.py", *options, "--model_name", packed, *wrong)
        assert done.returncode == 2 and f"'{packed}' is packed" in done.stderr
