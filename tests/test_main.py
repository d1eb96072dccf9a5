"""The training command as users start it: each launcher, resuming after a kill, and mistakes."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time

import pytest

from model_loader import complete_checkpoints
from tests.conftest import ROOT

MAIN = ROOT / "main.py"
LOGGED = ("lm_loss", "locality_weight")


@pytest.fixture
def options(tiny_checkpoint, sentences):
    """Options of a quick run, as a list for a command line."""
    return (
        f"--model_name {tiny_checkpoint} --dataset_name {sentences} --max_words_len 32 --batch_size 4 "
        "--lora_rank 2 --logging_steps 2 --eval_steps 4 --save_steps 4 --lora_save_path ./out --model_key _t"
    ).split()


def losses(folder):
    history = json.loads((folder / "training_summary.json").read_text())["log_history"]
    named = [(entry["step"], name, entry.get(name)) for entry in history for name in LOGGED]
    return {(step, name): value for step, name, value in named if value is not None}


def test_plain_python_trains_saves_and_logs(run_command, tmp_path, options):
    done = run_command(sys.executable, MAIN, *options, "--daft_threshold", "q50", "--save_merged", "True")
    assert done.returncode == 0, done.stderr[-2000:]
    out = tmp_path / "out"
    assert re.search(r"training \d of \d MoE layers .*trainable parameters; estimated saving", done.stdout)
    assert (out / "adapter_model.safetensors").exists()
    assert (out / "offline_ecr_profile.csv").read_text().startswith("layer_idx,ECR\n")
    assert [path.name for path in complete_checkpoints(out)] == [
        "checkpoint-4",
        "checkpoint-8",
        "checkpoint-12",
    ]
    assert (out / "merged" / "config.json").exists()
    assert list((tmp_path / "logs_t" / "out").glob("events.out.tfevents.*"))
    assert logged_tags(tmp_path / "logs_t" / "out") >= {
        "train/lm_loss",
        "train/locality_loss",
        "train/locality_weight",
        "train/balance_loss",
        "train/ecr",
        "train/hit_rate_lru_25",
        "eval/lm_loss",
        "eval/ecr",
        "eval/hit_rate_lru_25",
        "train/ecr_per_layer",
        "eval/ecr_per_layer",
        "train/ecr_heat_map",
    }


def logged_tags(folder):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder))
    events.Reload()
    tags = events.Tags()
    return {*tags["scalars"], *tags["histograms"], *tags["images"]}


@pytest.mark.parametrize("stage", ["zero2", "zero3"])
def test_deepspeed_on_two_ranks(run_command, tmp_path, options, stage):
    """The locality loss falls only if the gate's gradient survives sharding; the launcher picks ZeRO-2."""
    config = ["--deepspeed", ROOT / "configs" / "zero3.json"] if stage == "zero3" else []
    done = run_command(
        "deepspeed", "--num_accelerators", "2", "--master_port", "29613", MAIN, *options, *config,
        "--consecutive_expert_loss_weight", "5", "--lora_extra_modules", "gate", "--num_train_epochs", "2",
        "--distillation_weight", "0.1", "--aux_loss_alpha", "0.001", "--balance_scope", "global",
        "--target_ecr", "0.95",
        timeout_seconds=600,
    )  # fmt: skip
    assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]
    history = json.loads((tmp_path / "out" / "training_summary.json").read_text())["log_history"]
    locality = [entry["locality_loss"] for entry in history if "locality_loss" in entry]
    assert locality[-1] < locality[0] * 0.9, "the locality loss does not fall"


def test_torchrun_on_two_ranks(run_command, tmp_path, options):
    done = run_command("torchrun", "--standalone", "--nproc_per_node", "2", MAIN, *options)
    assert done.returncode == 0, done.stderr[-3000:]
    assert (tmp_path / "out" / "adapter_model.safetensors").exists()


def test_a_killed_run_goes_on_with_the_same_losses(run_command, tmp_path, options):
    options += ["--target_ecr", "0.5"]
    whole = [*options[:], "--lora_save_path", "./whole"]
    assert run_command(sys.executable, MAIN, *whole).returncode == 0
    kill_at_checkpoint(
        tmp_path, [*options, "--lora_save_path", "./killed"], tmp_path / "killed" / "checkpoint-8"
    )
    torn = tmp_path / "killed" / "checkpoint-9999"
    torn.mkdir()
    (torn / "adapter_config.json").write_text("{")
    again = [*options, "--lora_save_path", "./killed"]
    refused = run_command(sys.executable, MAIN, *again)
    assert refused.returncode == 2
    assert "--resume_from_checkpoint auto" in refused.stderr.strip().splitlines()[-1]
    resumed = run_command(sys.executable, MAIN, *again, "--resume_from_checkpoint", "auto")
    assert resumed.returncode == 0, resumed.stderr[-2000:]
    assert re.search(r"resuming from .*checkpoint-\d+", resumed.stdout)
    expected, found = losses(tmp_path / "whole"), losses(tmp_path / "killed")
    assert found == pytest.approx(expected, rel=1e-5)
    assert len({value for (_, name), value in found.items() if name == "locality_weight"}) > 2
    assert "target ECR 0.5 " in resumed.stdout


def kill_at_checkpoint(folder, options, checkpoint):
    """Starts a run and kills it (SIGKILL) as soon as the checkpoint is there; what came later is undone."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "STICKYMOE_CACHE": str(folder / "cache")}
    process = subprocess.Popen(
        [sys.executable, str(MAIN), *options],
        cwd=folder,
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    while process.poll() is None and not (checkpoint / "trainer_state.json").exists():
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    for late in ("checkpoint-12", "training_summary.json"):
        path = folder / "killed" / late
        shutil.rmtree(path, ignore_errors=True)
        path.unlink(missing_ok=True) if path.is_file() else None


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ("--model_name ./nowhere", "no model folder at './nowhere'"),
        ("--dataset_name nothing", "unknown data set 'nothing': choose from"),
        (
            "--consecutive_expert_loss_type jss",
            "unknown locality objective 'jss': choose from cache_miss, js",
        ),
        ("--target_modules q_proj,w_proj", "no MoE layer has a module 'w_proj': choose from"),
        ("--moe_module_name moe", "no MoE block is called 'moe'"),
        ("--daft_threshold 0.001", "--daft_threshold 0.001 selects no layer"),
        ("--lora_rnk 4", "unknown option '--lora_rnk': did you mean --lora_rank"),
        ("--target_ecr 0.5 --quality_budget 0.1", "one weight can hold one target"),
        ("--lora_rank 0", "--lora_rank 0: must be at least 1"),
        ("--deepspeed nothing.json", "training options:"),
        ("--resume_from_checkpoint ./out/checkpoint-7", "no complete checkpoint"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(run_command, tmp_path, options, changed, message):
    done = run_command(sys.executable, MAIN, *options, *changed.split())
    assert done.returncode == 2, done.stderr[-2000:]
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("error: ") and message in last
    assert "Traceback" not in done.stderr
    assert not list(tmp_path.glob("out/*adapter*"))


def test_options_come_from_a_file_too(run_command, tmp_path, options):
    (tmp_path / "run.yaml").write_text("lora_rank: 0\n")
    done = run_command(sys.executable, MAIN, "--config", "run.yaml", *options[: options.index("--lora_rank")])
    assert "--lora_rank 0: must be at least 1" in done.stderr
