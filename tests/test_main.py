"""The training command: what a run leaves, resuming after a kill or a full disk, and mistakes."""

import json
import os
import re
import resource
import shutil
import sys
import time
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, Trainer

import main
from dwellmoe.base_model import BASE_FILE
from dwellmoe.checkpoints import CHECKSUMS, complete_checkpoints
from dwellmoe.data.wording import saved_wording
from dwellmoe.errors import UserError
from dwellmoe.folder_lock import only_writer
from tests.conftest import ROOT, command_environment, quick_training
from tests.tiny_models import tiny_model

pytestmark = pytest.mark.slow

MAIN = str(ROOT / "main.py")
LOGGED = ("lm_loss", "locality_weight")
CHECKPOINTS = ["checkpoint-4", "checkpoint-8", "checkpoint-12"]


@pytest.fixture(scope="module")
def options(tiny_checkpoint, sentences):
    """Options of a quick run that selects layers by a profile and holds a target."""
    more = ("--daft_threshold", "q50", "--target_ecr", "0.5")
    return [*quick_training(tiny_checkpoint, sentences), *more]


@pytest.fixture(scope="module")
def whole(options, warm_python, tmp_path_factory):
    """The folder a whole run was started in, and the finished process."""
    folder = tmp_path_factory.mktemp("whole")
    words = [MAIN, *options, "--save_merged", "True"]
    return folder, warm_python.run(words, folder, command_environment(folder), 240)


@pytest.fixture
def train(tmp_path, monkeypatch):
    """Runs the command in this process, in a folder of the test's own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DWELLMOE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", "")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["main.py", *map(str, arguments)])
        main.main()

    yield run
    torch.set_num_threads(threads)


def names(folder):
    return [path.name for path in complete_checkpoints(folder)]


def losses(folder):
    history = summary_of(folder)["log_history"]
    named = [(entry["step"], name, entry.get(name)) for entry in history for name in LOGGED]
    return {(step, name): value for step, name, value in named if value is not None}


def test_plain_python_trains_saves_and_logs(whole):
    folder, done = whole
    assert done.returncode == 0, done.stderr[-2000:]
    out = folder / "out"
    assert re.search(r"training \d of \d MoE layers .*trainable parameters; estimated saving", done.stdout)
    assert "target ECR 0.5 " in done.stdout
    assert (out / "adapter_model.safetensors").exists() and not list(out.glob(".unfinished*"))
    assert (out / "offline_ecr_profile.csv").read_text().startswith("layer_idx,ECR\n")
    assert names(out) == CHECKPOINTS
    assert (out / "merged" / "config.json").exists()
    assert list((folder / "logs_t" / "out").glob("events.out.tfevents.*"))
    assert logged_tags(folder / "logs_t" / "out") >= {
        "train/lm_loss",
        "train/locality_loss",
        "train/locality_weight",
        "train/balance_loss",
        "train/ecr",
        "train/hit_rate_lru_25",
        "eval/lm_loss",
        "eval/locality_loss",
        "eval/balance_loss",
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


def test_a_killed_run_goes_on_with_the_same_losses(train, tmp_path, options, whole, warm_python):
    kill_at_checkpoint(warm_python, tmp_path, options, tmp_path / "out" / "checkpoint-8")
    torn = tmp_path / "out" / "checkpoint-9999"
    torn.mkdir()
    (torn / "adapter_config.json").write_text("{")
    with pytest.raises(UserError, match="--resume_from_checkpoint auto"):
        train(*options)
    train(*options, "--resume_from_checkpoint", "auto")
    found = losses(tmp_path / "out")
    assert found == pytest.approx(losses(whole[0] / "out"), rel=1e-5)
    assert len({value for (_, name), value in found.items() if name == "locality_weight"}) > 2


def kill_at_checkpoint(python, folder, options, checkpoint):
    """Starts a run and kills it (SIGKILL) as soon as the checkpoint is there; what came later is undone."""
    process = python.start([MAIN, *options], folder, command_environment(folder))
    while process.poll() is None and not (checkpoint / CHECKSUMS).exists():
        time.sleep(0.02)
    process.end()
    shutil.rmtree(checkpoint.with_name("checkpoint-12"), ignore_errors=True)
    (checkpoint.parent / "training_summary.json").unlink(missing_ok=True)


def test_a_full_disk_leaves_the_last_checkpoint(train, tmp_path, monkeypatch, options, whole):
    """The disk takes no file above 4 kB while the second checkpoint's optimizer state is written."""
    save = Trainer._save_optimizer_and_scheduler

    def save_with_little_room(self, folder):
        _, hard = limits = resource.getrlimit(resource.RLIMIT_FSIZE)
        if self.state.global_step == 8:
            resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
        try:
            save(self, folder)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)

    with monkeypatch.context() as patched:
        patched.setattr(Trainer, "_save_optimizer_and_scheduler", save_with_little_room)
        message = "'out/checkpoint-8' cannot be written: .*; complete checkpoints: checkpoint-4; make room"
        with pytest.raises(UserError, match=message):
            train(*options)
    assert [path.name for path in (tmp_path / "out").glob("checkpoint-*")] == ["checkpoint-4"]
    train(*options, "--resume_from_checkpoint", tmp_path / "out" / "checkpoint-4")
    assert losses(tmp_path / "out") == pytest.approx(losses(whole[0] / "out"), rel=1e-5)


def summary_of(folder):
    return json.loads((folder / "training_summary.json").read_text())


@pytest.fixture
def half_done(tmp_path, whole):
    """A copy of the whole run without its last checkpoint and without its adapter."""
    shutil.copytree(whole[0] / "out", tmp_path / "out")
    shutil.rmtree(tmp_path / "out" / "checkpoint-12")
    for name in ("training_summary.json", "adapter_model.safetensors"):
        (tmp_path / "out" / name).unlink()
    return tmp_path / "out"


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ("--learning_rate 0.01", "--learning_rate was 0.001, is 0.01"),
        ("--seed 7", "--seed was 42, is 7"),
        ("--limit_train 40", "--limit_train was none, is 40"),
        ("--consecutive_expert_loss_type js", "--consecutive_expert_loss_type was cache_miss, is js"),
        ("--batch_size 8", "--per_device_train_batch_size was 4, is 8"),
        ("--lora_rank 4", "give --lora_rank as before"),
        ("--train_scope router", "--train_scope was none, is router"),
        ("--num_train_epochs 0.5", "--num_train_epochs was 1.0, is 0.5"),
        ("--max_steps 6", "--max_steps 6: "),
    ],
)
def test_another_run_does_not_go_on(train, half_done, options, changed, named):
    before = sorted(half_done.rglob("*"))
    with pytest.raises(UserError, match=re.escape(named)):
        train(*options, "--resume_from_checkpoint", "auto", *changed.split())
    assert sorted(half_done.rglob("*")) == before


def test_another_base_model_does_not_go_on(train, half_done, options, tmp_path, tiny_checkpoint):
    model = AutoModelForCausalLM.from_pretrained(tiny_checkpoint)
    next(model.parameters()).data.mul_(1.01)
    shutil.copytree(tiny_checkpoint, tmp_path / "other")
    model.save_pretrained(tmp_path / "other")
    with pytest.raises(UserError, match=r"weights of the base model was \w+, is \w+"):
        train(*options, "--resume_from_checkpoint", "auto", "--model_name", tmp_path / "other")


def test_a_run_that_goes_on_anyway_chooses_its_best_checkpoint_anew(train, half_done, options, capsys):
    train(*options, "--resume_from_checkpoint", "auto", "--learning_rate", "1e-9", "--resume_anyway", "True")
    assert "--learning_rate was 0.001, is 1e-09" in capsys.readouterr().err
    summary = summary_of(half_done)
    assert summary["best_checkpoint"].endswith("checkpoint-12")
    rates = [entry["learning_rate"] for entry in summary["log_history"] if "learning_rate" in entry]
    assert max(rates[-2:]) < 1e-8


def test_free_room_is_counted_before_the_training(train, tmp_path, options, monkeypatch):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage._replace(free=10_000))
    with pytest.raises(UserError, match=r"MiB are free, but needed are: a checkpoint .*the merged model"):
        train(*options, "--save_merged", "True")
    assert not list(tmp_path.glob("out/checkpoint*"))


def test_a_longer_run_goes_on(train, half_done, options):
    longer = ("--num_train_epochs", "1.5", "--save_total_limit", "9", "--logging_steps", "3")
    train(*options, "--resume_from_checkpoint", "auto", *longer)
    assert names(half_done)[-1] == "checkpoint-18"


def test_cut_checkpoints_fall_back_to_whole_ones(train, tmp_path, options, whole, half_done, capsys):
    """The last checkpoint, from which a run goes on, and the best, which it loads in the end."""
    last = half_done / "checkpoint-8" / "optimizer.pt"
    last.write_bytes(last.read_bytes()[:-100])
    train(*options, "--resume_from_checkpoint", "auto")
    assert "checkpoint-8' is left out: optimizer.pt" in capsys.readouterr().err
    assert losses(half_done) == pytest.approx(losses(whole[0] / "out"), rel=1e-5)


def test_a_second_run_into_one_folder_is_refused(train, tmp_path, options):
    with only_writer(tmp_path / "out"), pytest.raises(UserError, match=f"process {os.getpid()} "):
        train(*options)
    assert not list(tmp_path.glob("out/checkpoint*"))


def test_the_wording_is_kept_with_every_adapter_and_the_merged_model(whole):
    out = whole[0] / "out"
    found = {saved_wording(folder) for folder in (out, out / "checkpoint-4", out / "merged")}
    assert {(wording.prompt, wording.answer, wording.chat_template) for wording in found if wording} == {
        ("{question}", " {reply}", False)
    }
    assert None not in found


def test_an_adapter_folder_is_complete(whole, tiny_checkpoint):
    out = whole[0] / "out"
    config = json.loads((out / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == str(tiny_checkpoint)
    assert json.loads((out / BASE_FILE).read_text())["name"] == str(tiny_checkpoint)
    plain = whole[0] / "plain"
    plain.touch()
    card = (out / "README.md").read_text()
    parts = "cache_miss", "PeftModel.from_pretrained", "| step 4 |", "seed", "perplexity", "| target |"
    for part in (str(tiny_checkpoint), *parts):
        assert part in card
    modes = {path.stat().st_mode for path in out.rglob("*") if path.is_file()}
    assert modes == {plain.stat().st_mode}


@pytest.mark.parametrize(
    "mistake", ["--model_name ./nowhere", "--target_modules w_proj", "--lora_extra_modules q_proj"]
)
def test_overwriting_loses_nothing_to_a_mistake(train, tmp_path, options, whole, mistake):
    shutil.copytree(whole[0] / "out", tmp_path / "out")
    with pytest.raises(UserError):
        train(*options, "--overwrite_output", *mistake.split())
    assert names(tmp_path / "out") == CHECKPOINTS


def test_overwriting_starts_over(train, tmp_path, options, whole):
    shutil.copytree(whole[0] / "out", tmp_path / "out")
    train(*options, "--overwrite_output", "--max_steps", "4", "--save_merged", "True")
    assert names(tmp_path / "out") == ["checkpoint-4"]


def test_bfloat16_and_every_weight_train(train, tmp_path, options, capsys):
    train(*options, "--bf16", "True", "--use_lora", "False", "--max_steps", "4", "--packing", "True")
    warnings = [line for line in capsys.readouterr().out.splitlines() if line.startswith("warning")]
    assert warnings == ["warning: --lora_rank: no effect beside the other options"]
    assert (tmp_path / "out" / "model.safetensors").exists()
    assert {step for step, _ in losses(tmp_path / "out")} == {2, 4}


def test_smoothed_gates_raise_the_ecr_before_the_first_step(train, tmp_path, options):
    once = ["--daft_threshold", "1.0", "--lora_extra_modules", "gate", "--eval_on_start", "--max_steps", "4"]
    ecr = []
    for strength in ("0", "20"):
        train(*options, *once, "--overwrite_output", "--smooth_gates", strength)
        history = summary_of(tmp_path / "out")["log_history"]
        ecr += [next(entry["eval_ecr"] for entry in history if "eval_ecr" in entry)]
    assert ecr[1] > ecr[0]


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ("--model_name ./nowhere", "no model folder at './nowhere'"),
        ("--dataset_name nothing", "unknown data set 'nothing': choose from"),
        ("--consecutive_expert_loss_type jss", "unknown locality objective 'jss'"),
        ("--target_modules q_proj,w_proj", "no MoE layer has a module 'w_proj': choose from"),
        ("--moe_module_name moe", "no MoE block is called 'moe'"),
        ("--daft_threshold 0.001", "--daft_threshold 0.001 selects no layer"),
        ("--target_ecr 0.5 --quality_budget 0.1", "one weight can follow only one target"),
        ("--lora_rank 0", "--lora_rank 0: must be at least 1"),
        ("--train_rerouting margins", "unknown routing strategy 'margins'"),
        ("--train_rerouting margin --gradient_checkpointing True", "leave gradient checkpointing out"),
        ("--smooth_gates -1 --lora_extra_modules gate", "--smooth_gates -1.0: must be at least 0"),
        ("--smooth_gates 2", "--smooth_gates refits whole gates: train them in full"),
        ("--deepspeed nothing.json", "--deepspeed nothing.json: No such file"),
        ("--resume_from_checkpoint ./out/checkpoint-7", "no complete checkpoint"),
        ("--report_to carrier_pigeon", "unknown --report_to 'carrier_pigeon'"),
        ("--lora_save_path /proc/out", "--lora_save_path /proc/out: No such file or directory"),
    ],
)
def test_mistakes_are_named(train, tmp_path, options, changed, message):
    with pytest.raises(UserError, match=re.escape(message)):
        train(*options, *changed.split())
    assert not list(tmp_path.glob("out/*adapter*"))


def test_a_mistake_is_one_line_and_exit_code_2(run_command, options):
    done = run_command(sys.executable, MAIN, *options, "--lora_rnk", "4")
    assert done.returncode == 2, done.stderr[-2000:]
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("error: unknown option '--lora_rnk': did you mean --lora_rank")
    assert "Traceback" not in done.stderr


def test_options_come_from_a_file_too(train, tmp_path, options):
    (tmp_path / "run.yaml").write_text("lora_rank: 0\n")
    with pytest.raises(UserError, match="--lora_rank 0: must be at least 1"):
        train("--config", "run.yaml", *options[: options.index("--lora_rank")])


@pytest.mark.parametrize(("family", "expected"), [("deepseek_v32", 1), ("deepseek_v3", 8)])
def test_models_that_padding_changes_are_validated_one_by_one(family, expected):
    run: Any = SimpleNamespace(train=SimpleNamespace(per_device_eval_batch_size=8))
    main.validate_alone(run, tiny_model(family))
    assert run.train.per_device_eval_batch_size == expected
