"""Training with experts streamed from the checkpoint, by the real command."""

import json
import shutil
import sys

import pytest

from config import parse_run
from dwellmoe.errors import UserError
from dwellmoe.locality.command_line import parse_training
from dwellmoe.training_checks import check_options
from tests.conftest import ROOT, quick_training
from tests.data.stand_ins import WORDS, word_tokenizer
from tests.experts.low_bit_checkpoints import mxfp4_checkpoint
from tests.test_launchers import TORCHRUN

LOGGED = ("--logging_steps", "1", "--daft_threshold", "q50")
BUDGET = ("--expert_budget", "50%")


@pytest.fixture
def options(tiny_checkpoint, sentences):
    return quick_training(tiny_checkpoint, sentences)


def _history(folder, *names) -> list[tuple]:
    history = json.loads((folder / "training_summary.json").read_text())["log_history"]
    return [tuple(entry[name] for name in names) for entry in history if names[-1] in entry]


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ("--use_lora False", "--use_lora True"),
        ("--expert_lora peft", "--expert_lora peft"),
        ("--save_merged True", "--save_merged"),
        ("--expert_budget nan", "--expert_budget nan"),
        ("--expert_budget 0%", "--expert_budget 0%"),
        ("--expert_budget 6GiBB", "--expert_budget 6GiBB"),
    ],
)
def test_what_does_not_go_together_is_refused(given, named, options):
    words = given.split()
    budget = () if words[0] == "--expert_budget" else BUDGET
    with pytest.raises(UserError, match=named) as error:
        check_options(parse_training([*options, *budget, *words]))
    assert "\n" not in str(error.value)


def test_a_format_that_the_checkpoint_is_not_stored_in_is_refused(options, monkeypatch):
    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", "")
    with pytest.raises(UserError, match=r"--expert_format int8.*`dwellmoe pack \S+ \S+-int8 --format int8`"):
        parse_run([*options, *BUDGET, "--expert_format", "int8"])


@pytest.mark.parametrize("budget", ["1KiB", "2%", "2"])
def test_a_budget_below_a_layer_is_refused_before_anything_is_loaded(budget, options, monkeypatch):
    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", "")
    with pytest.raises(UserError, match=f"--expert_budget {budget}.*the 8 of a layer.*MiB or .*%"):
        parse_run([*options, "--expert_budget", budget])


@pytest.mark.parametrize(
    ("given", "checkpointed"),
    [
        ((), True),
        (("--gradient_checkpointing", "False"), False),
        (("--train_rerouting", "max_rank"), False),
    ],
)
def test_layers_are_checkpointed_unless_that_is_ruled_out(given, checkpointed, options, monkeypatch):
    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", "")
    run = parse_run([*options, *BUDGET, *given])
    assert run.train.activation_checkpointing == checkpointed


@pytest.mark.parametrize(("given", "rows"), [((), 4), (("--per_device_eval_batch_size", "2"), 2)])
def test_a_validation_batch_takes_no_more_memory_than_a_training_batch(given, rows, options, monkeypatch):
    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", "")
    assert parse_run([*options, *BUDGET, *given]).train.per_device_eval_batch_size == rows


@pytest.mark.slow
def test_a_run_is_the_same_as_with_experts_in_memory_and_is_resumed(run_command, tmp_path, options):
    """With accumulated batches, a reference model, packing, and only half of the layers trained."""
    more = "--max_steps 20 --gradient_accumulation_steps 2 --distillation_weight 1 --packing True"
    names = ("step", "loss", "grad_norm"), ("step", "eval_lm_loss")
    found = []
    for budget in ((), BUDGET):
        command = (sys.executable, ROOT / "main.py", *options, *more.split(), *LOGGED, *budget)
        done = run_command(*command, "--overwrite_output", "True")
        assert done.returncode == 0, done.stderr[-3000:]
        found.append([_history(tmp_path / "out", *each) for each in names])
    resident, streamed = found
    assert len(streamed[0]) == 20
    for one, other in zip(streamed, resident, strict=True):
        assert one == [pytest.approx(entry, abs=1e-5) for entry in other]
    for later in ("checkpoint-16", "checkpoint-20"):
        shutil.rmtree(tmp_path / "out" / later, ignore_errors=True)
    done = run_command(*command, "--resume_from_checkpoint", "auto")
    assert done.returncode == 0, done.stderr[-3000:]
    assert _history(tmp_path / "out", *names[0]) == [pytest.approx(entry, abs=1e-5) for entry in streamed[0]]


@pytest.mark.slow
def test_low_bits_train_the_same_as_in_memory(run_command, tmp_path, sentences):
    sizes = {"vocab_size": len(WORDS), "eos_token_id": 1, "pad_token_id": 2}
    folder = shutil.copytree(mxfp4_checkpoint(**sizes), tmp_path / "model")
    word_tokenizer().save_pretrained(folder)
    options, losses = quick_training(folder, sentences), []
    for given in (("--expert_format", "as_stored"), BUDGET):
        done = run_command(
            sys.executable, ROOT / "main.py", *options, *given, *LOGGED, "--overwrite_output", "True"
        )
        assert done.returncode == 0, done.stderr[-3000:]
        losses.append(_history(tmp_path / "out", "step", "loss", "grad_norm"))
    assert len(losses[0]) == 12
    assert losses[1] == [pytest.approx(entry, abs=1e-5) for entry in losses[0]]


@pytest.mark.slow
def test_two_ranks_train(run_command, tmp_path, options):
    losses = []
    for budget in ((), BUDGET):
        done = run_command(*TORCHRUN, *options, *budget, "--overwrite_output", "True", timeout_seconds=600)
        assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]
        losses.append(_history(tmp_path / "out", "step", "loss"))
    assert losses[1] == [pytest.approx(entry, abs=1e-5) for entry in losses[0]]


@pytest.mark.slow
def test_zero_3_is_refused(run_command, options):
    zero3 = ("--deepspeed", ROOT / "configs" / "zero3.json")
    done = run_command(sys.executable, ROOT / "main.py", *options, *BUDGET, *zero3)
    assert done.returncode == 2
    assert "--expert_budget: not under ZeRO-3" in done.stderr.strip().splitlines()[-1]


@pytest.mark.slow
def test_a_shard_cut_while_training_ends_the_run_in_one_line(run_command, tmp_path, options, tiny_checkpoint):
    """What was saved stays usable: with the file back, the run goes on."""
    folder = shutil.copytree(tiny_checkpoint, tmp_path / "model")
    script = tmp_path / "cut.py"
    script.write_text(CUT.format(shard=folder / "model.safetensors", main=ROOT / "main.py"))
    given = (*options, *BUDGET, "--model_name", folder)
    done = run_command(sys.executable, script, *given)
    assert done.returncode == 2, done.stderr[-3000:]
    (line,) = [line for line in done.stderr.splitlines() if "error:" in line]
    assert "after step 6" in line and "model.safetensors" in line and "checkpoint-4" in line
    assert "Traceback" not in done.stderr
    shutil.copyfile(tiny_checkpoint / "model.safetensors", folder / "model.safetensors")
    done = run_command(sys.executable, ROOT / "main.py", *given, "--resume_from_checkpoint", "auto")
    assert done.returncode == 0, done.stderr[-3000:]
    assert (tmp_path / "out" / "adapter_model.safetensors").exists()


CUT = """
import os, runpy
from transformers import TrainerCallback
from transformers.trainer import DEFAULT_CALLBACKS

class Cut(TrainerCallback):
    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == 6:
            os.truncate("{shard}", 4096)

DEFAULT_CALLBACKS.append(Cut)
runpy.run_path("{main}", run_name="__main__")
"""
