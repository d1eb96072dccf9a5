"""The training command under each launcher, on two ranks; and what happens when one of them dies."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.conftest import ROOT, command_environment, quick_training

pytestmark = pytest.mark.slow

MAIN = ROOT / "main.py"
TORCHRUN = ("torchrun", "--standalone", "--nproc_per_node", "2", MAIN)


@pytest.fixture
def options(tiny_checkpoint, sentences):
    return quick_training(tiny_checkpoint, sentences)


@pytest.mark.parametrize("stage", ["zero2", "zero3"])
def test_deepspeed_on_two_ranks(run_command, deepspeed, tmp_path, options, stage):
    """The locality loss falls only if the gate's gradient survives sharding and checkpointing; the launcher
    picks ZeRO-2.
    """
    config = ["--deepspeed", ROOT / "configs" / "zero3.json"] if stage == "zero3" else []
    same = [
        MAIN, *options, "--consecutive_expert_loss_weight", "5", "--lora_extra_modules", "gate",
        "--num_train_epochs", "2", "--gradient_checkpointing", "True", "--save_merged", "True",
        "--distillation_weight", "0.1", "--aux_loss_alpha", "0.001", "--balance_scope", "global",
        "--target_ecr", "0.95",
    ]  # fmt: skip
    done = run_command(*deepspeed, *same, *config, timeout_seconds=600)
    assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]
    history = json.loads((tmp_path / "out" / "training_summary.json").read_text())["log_history"]
    locality = [entry["locality_loss"] for entry in history if "locality_loss" in entry]
    assert locality[-1] < locality[0] * 0.9, "the locality loss does not fall"
    assert (tmp_path / "out" / "merged" / "model.safetensors").stat().st_size > 100_000
    alone = run_command(sys.executable, *same, "--resume_from_checkpoint", "auto")
    assert alone.returncode == 2, alone.stderr[-3000:]
    said = alone.stderr.strip().splitlines()[-1]
    assert f"DeepSpeed was ZeRO stage {stage[-1]}, is none" in said and "ranks was 2, is 1" in said


def test_accelerate_launches_too(run_command, tmp_path, options):
    launcher = ("accelerate", "launch", "--cpu", "--num_processes", "1", "--num_machines", "1")
    settings = ("--mixed_precision", "no", "--dynamo_backend", "no", MAIN, *options, "--max_steps", "2")
    done = run_command(*launcher, *settings)
    assert done.returncode == 0, done.stderr[-3000:]
    assert (tmp_path / "out" / "adapter_model.safetensors").exists()


def test_a_rank_that_dies_ends_the_run_which_then_goes_on(run_command, tmp_path, options):
    """Under torchrun: no rank waits for the dead one, the message names it, and nothing is lost. With experts
    in low bits, which DDP sends from rank to rank before training begins.
    """
    options += ["--expert_format", "int8"]
    with (tmp_path / "stderr").open("w") as stderr:
        run = subprocess.Popen(
            [*map(str, TORCHRUN), *options, "--num_train_epochs", "500"],
            cwd=tmp_path,
            env=command_environment(tmp_path, TMPDIR=str(tmp_path)),
            stdout=subprocess.DEVNULL,
            stderr=stderr,
        )
    checkpoint = tmp_path / "out" / "checkpoint-4" / "trainer_state.json"
    while run.poll() is None and not checkpoint.exists():
        time.sleep(0.05)
    os.kill(process_of_rank(1, parent=run.pid), signal.SIGKILL)
    assert run.wait(timeout=60) != 0
    assert "SIGKILL" in (tmp_path / "stderr").read_text()
    resumed = ("--resume_from_checkpoint", "auto", "--resume_anyway", "True")  # with fewer epochs
    done = run_command(*TORCHRUN, *options, *resumed)
    assert done.returncode == 0, done.stderr[-3000:]
    assert (tmp_path / "out" / "adapter_model.safetensors").exists()
    losses = logged_losses(tmp_path / "out")
    assert losses[max(losses)] < losses[min(losses)]


def logged_losses(folder: Path) -> dict[int, float]:
    """Step -> the loss of language modelling, of a run's output folder."""
    history = json.loads((folder / "training_summary.json").read_text())["log_history"]
    return {entry["step"]: entry["lm_loss"] for entry in history if "lm_loss" in entry}


def process_of_rank(rank, parent):
    children = Path(f"/proc/{parent}/task/{parent}/children").read_text().split()
    mark = f"LOCAL_RANK={rank}".encode()
    return next(
        int(pid) for pid in children if mark in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    )
