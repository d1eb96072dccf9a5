"""Settings of a training run: the Trainer's options, joined with those of the package and checked together.

Each folder of the package has the dataclass of its own settings: `families`, `data`, `locality`, ...
"""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import TrainingArguments, set_seed
from transformers.integrations import get_reporting_integration_callbacks, is_deepspeed_zero3_enabled

from dwellmoe.data.settings import DataSettings
from dwellmoe.errors import UserError, first_line
from dwellmoe.launch import drop_stale_build_locks
from dwellmoe.loading import check_expert_format
from dwellmoe.locality.command_line import TrainingOptions, parse_training
from dwellmoe.locality.settings import ROUTER, AdapterSettings, LocalitySettings
from dwellmoe.locality.threshold import needs_profile
from dwellmoe.offload.stream_loading import check_streamed
from dwellmoe.options import split_list
from dwellmoe.publishing import HubRepository
from dwellmoe.registry import take_plugins
from dwellmoe.settings.model import ModelSettings
from dwellmoe.settings.streaming import StreamingSettings
from dwellmoe.settings.trainer import TrainerSettings
from dwellmoe.training_checks import check_options

NEEDED = {
    "gradient_checkpointing_kwargs": "gradient_checkpointing",
    "activation_checkpointing_kwargs": "activation_checkpointing",
    "liger_kernel_config": "use_liger_kernel",
}
"""Option of transformers -> the option without which it has no effect."""
KEYLESS_MODES = ("offline", "disabled", "dryrun")
"""Of WANDB_MODE: nothing is sent."""
DEFAULT_DEEPSPEED = Path(__file__).resolve().parent / "configs" / "zero2.json"


@dataclass
class TrainSettings(TrainerSettings, TrainingArguments):
    """transformers' own training options, with this project's defaults."""

    def __post_init__(self):
        self.output_dir = self.output_dir or AdapterSettings.lora_save_path
        # Without this, ranks on CPUs could not communicate.
        self.use_cpu = self.use_cpu or not torch.accelerator.is_available()
        self.report_to = split_list(self.report_to) if isinstance(self.report_to, str) else self.report_to
        TrainerSettings.__post_init__(self)
        try:
            TrainingArguments.__post_init__(self)
        except (ValueError, OSError) as error:
            raise UserError(f"training options: {first_line(error)}") from None


@dataclass(frozen=True)
class Run:
    """The settings of one training run."""

    model: ModelSettings
    data: DataSettings
    adapter: AdapterSettings
    locality: LocalitySettings
    train: TrainSettings
    streaming: StreamingSettings
    hub: HubRepository | None = None
    """Where the finished folder is uploaded to, with --push_to_hub."""

    @property
    def folder(self) -> Path:
        return Path(self.adapter.lora_save_path)

    def report(self, text: str) -> None:
        """Prints on the first rank."""
        if self.train.process_index == 0:
            print(text, flush=True)


def parse_run(arguments: list[str]) -> Run:
    """The settings of a command line. UserError for whatever is wrong before a model is loaded."""
    options = parse_training(take_plugins(with_default_deepspeed(arguments)))
    check_options(options)
    train = TrainSettings(**vars(options.trainer), **_streamed(options))
    run = Run(
        options.model,
        options.data,
        options.adapter,
        options.locality,
        train,
        options.streaming,
        _hub(options, train),
    )
    if not run.train.learning_rate:
        run.report("warning: --learning_rate 0: nothing is trained, the weights stay as they are")
    if idle := sorted(options.given & _without_effect(run)):
        run.report(
            "warning: " + ", ".join(f"--{name}" for name in idle) + ": no effect beside the other options"
        )
    _check_folder(run)
    if run.streaming.expert_budget is not None:
        _check_expert_budget(run, run.streaming.expert_budget)
    elif run.model.expert_format:
        _check_expert_format(run.model)
    run.train.output_dir = str(run.folder)
    run.train.remove_unused_columns = False
    _refuse_reentrant(run.train)
    _check_reporters(run.train)
    _check_metric(run)
    if run.locality.train_rerouting is not None:
        _check_rerouting(run)
    if run.locality.smooth_gates:
        _check_smoothing(run)
    if run.locality.has_target:
        _prepare_target(run)
    os.environ["TENSORBOARD_LOGGING_DIR"] = log_folder(run.model, run.folder.name)
    set_seed(run.train.seed)
    return run


def _streamed(options: TrainingOptions) -> dict[str, Any]:
    """Options of transformers' own. Where experts are streamed, memory is short: activations are kept by
    checkpoints of the layers, unless re-routing rules it out, and a validation batch is no larger than a
    training batch. What the user chose stays.
    """
    chosen = options.library
    if options.streaming.expert_budget is None:
        return chosen
    found = {"per_device_eval_batch_size": options.trainer.per_device_train_batch_size} | chosen
    checkpointed = {"gradient_checkpointing", "activation_checkpointing"} & chosen.keys()
    if not checkpointed and options.locality.train_rerouting is None:
        found["activation_checkpointing"] = True
    return found


def _hub(options: TrainingOptions, train: TrainSettings) -> HubRepository | None:
    """Where --push_to_hub uploads to. The Trainer is not to push: the folder is whole only after it."""
    if not train.push_to_hub:
        return None
    train.push_to_hub = False
    name = train.hub_model_id or Path(options.adapter.lora_save_path).resolve().name
    return HubRepository(name, train.hub_token, train.hub_private_repo)


def _check_folder(run: Run) -> None:
    """UserError for a folder that cannot be that of a run."""
    if not run.adapter.lora_save_path.strip():
        raise UserError("--lora_save_path is empty: name a folder")
    if run.train.output_dir not in (AdapterSettings.lora_save_path, run.adapter.lora_save_path):
        raise UserError(f"--output_dir {run.train.output_dir}: a run's folder is named by --lora_save_path")
    if run.folder.resolve() == Path(run.model.model_name).resolve():
        raise UserError(f"--lora_save_path '{run.folder}' is the folder of the base model: choose another")


def _check_expert_format(model: ModelSettings) -> None:
    if is_deepspeed_zero3_enabled():
        raise UserError(
            "--expert_format: not under ZeRO-3, which shards weights of 16 and 32 bits; use ZeRO-2 or "
            "torchrun"
        )
    check_expert_format(model)


def _check_expert_budget(run: Run, expert_budget: str) -> None:
    if is_deepspeed_zero3_enabled():
        raise UserError(
            "--expert_budget: not under ZeRO-3, which would spread the experts over the ranks; use ZeRO-2 or "
            "torchrun"
        )
    check_streamed(run.model.model_name, expert_budget, run.model.expert_format)


def _check_metric(run: Run) -> None:
    """UserError for a metric that is only measured with a target which is not given."""
    metric, settings = run.train.metric_for_best_model, run.locality
    missing = {"target_error": not settings.has_target, "hit_rate_target": settings.target_hit_rate is None}
    if missing.get((metric or "").removeprefix("eval_")):
        raise UserError(f"--metric_for_best_model {metric}: is only measured with a target")


def _prepare_target(run: Run) -> None:
    """Has the best checkpoint be the best of those that meet the target."""
    settings, train = run.locality, run.train
    if train.metric_for_best_model == TrainSettings.metric_for_best_model:
        train.metric_for_best_model = "eval_target_error"
    if settings.quality_budget is not None and settings.quality_reference is None:
        train.eval_on_start = True


def _without_effect(run: Run) -> set[str]:
    """Names of options that have no effect beside the others."""
    idle = {"remove_unused_columns", "hub_strategy", "hub_always_push", "hub_revision"}
    if run.hub is None:
        idle |= {"hub_model_id", "hub_token", "hub_private_repo"}
    idle |= {option for option, needed in NEEDED.items() if not getattr(run.train, needed)}
    if "galore" not in run.train.optim and "apollo" not in run.train.optim:
        idle |= {"optim_target_modules"}
    if not run.adapter.use_lora:
        idle |= {"lora_rank", "lora_alpha", "target_modules", "lora_extra_modules", "save_merged"}
        idle |= {"expert_lora"}
    if not needs_profile(run.adapter.daft_threshold) and not run.adapter.profile_only:
        idle |= {"ecr_profile", "profile_examples"}
    if run.locality.consecutive_expert_loss_weight == 0 and not run.locality.has_target:
        idle |= {"locality_schedule", "locality_on_prompt"}
    if run.locality.train_rerouting is None:
        idle |= {"train_rerouting_cache"}
    if not run.locality.smooth_gates:
        idle |= {"smooth_examples"}
    if run.model.expert_format or run.streaming.expert_budget is not None:
        idle |= {"experts_implementation"}
    return idle


def _check_rerouting(run: Run) -> None:
    if is_deepspeed_zero3_enabled():
        raise UserError("--train_rerouting: not under ZeRO-3, whose ranks hold shards of the gates")
    if run.train.gradient_checkpointing or run.train.activation_checkpointing:
        raise UserError(
            "--train_rerouting: leave gradient checkpointing out, it would recompute with another cache"
        )


def _check_smoothing(run: Run) -> None:
    if run.adapter.use_lora and ROUTER not in run.adapter.extra_names:
        raise UserError(
            "--smooth_gates refits whole gates: train them in full, with --lora_extra_modules gate or "
            "--train_scope router_attention"
        )
    if is_deepspeed_zero3_enabled():
        raise UserError("--smooth_gates: not under ZeRO-3, whose ranks hold shards of the gates")


def _refuse_reentrant(train: TrainSettings) -> None:
    """Reentrant checkpointing silently drops the gradient of the locality term."""
    for kwargs in (train.gradient_checkpointing_kwargs, train.activation_checkpointing_kwargs):
        if isinstance(kwargs, dict) and kwargs.get("use_reentrant"):
            raise UserError("use_reentrant=true would drop the gradient of the locality loss: leave it out")


def _check_reporters(train: TrainSettings) -> None:
    """Finds an unknown reporter, or one whose package is missing, before a model is loaded."""
    try:
        for reporter in get_reporting_integration_callbacks(train.report_to):
            # Some end a run when they are destroyed, which fails where they could not be made.
            type(reporter.__name__, (reporter,), {"__del__": lambda self: None})()
    except (ValueError, RuntimeError) as error:
        raise UserError(f"--report_to: {first_line(error)}") from None
    if "wandb" in (train.report_to or ()) and os.environ.get("WANDB_MODE") not in KEYLESS_MODES:
        _check_wandb_key()


def _check_wandb_key() -> None:
    """UserError where Weights & Biases would fail, or wait for a key, after the model has been loaded."""
    import wandb  # pyright: ignore  # optional, and slow to import

    if not wandb.login(prompt=False):
        raise UserError(
            "--report_to wandb: no key of Weights & Biases was found: set WANDB_API_KEY, run `wandb login`, "
            "or log to files alone with WANDB_MODE=offline"
        )


def with_default_deepspeed(arguments: list[str]) -> list[str]:
    """The command line, with configs/zero2.json if the deepspeed launcher started this and no file is named.

    Only the deepspeed launcher adds --local_rank.
    """
    if not any(argument.startswith("--local_rank") for argument in arguments):
        return arguments
    drop_stale_build_locks()
    named = any(argument.split("=")[0] == "--deepspeed" for argument in arguments)
    return arguments if named else [*arguments, "--deepspeed", str(DEFAULT_DEEPSPEED)]


def log_folder(model: ModelSettings, run_name: str) -> str:
    """TensorBoard's folder: `tensorboard --logdir=./logs{model_key}` shows every run of a model."""
    return os.path.join(f"./logs{model.model_key}", run_name)
