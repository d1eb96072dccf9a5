"""Knows the settings of a training run and what they demand of one another; loads and trains nothing."""

import os
from dataclasses import dataclass
from pathlib import Path

from transformers import set_seed
from transformers.integrations import get_reporting_integration_callbacks, is_deepspeed_zero3_enabled

from command_line import settings_parser
from config import (
    SETTINGS,
    AdapterSettings,
    DataSettings,
    LocalitySettings,
    ModelSettings,
    TrainSettings,
    log_folder,
)
from errors import UserError, first_line
from launch import with_default_deepspeed
from locality.elastic_lora import ROUTER, needs_profile
from locality.objectives import load_objective
from locality.quality_reference import control_losses
from locality.rerouted_training import check_rerouting
from locality.targets import target_of


@dataclass(frozen=True)
class Run:
    """The settings of one training run."""

    model: ModelSettings
    data: DataSettings
    adapter: AdapterSettings
    locality: LocalitySettings
    train: TrainSettings

    @property
    def folder(self) -> Path:
        return Path(self.adapter.lora_save_path)

    def say(self, text: str) -> None:
        """Prints on the first rank."""
        if self.train.process_index == 0:
            print(text, flush=True)


def parse_run(arguments: list[str], description: str) -> Run:
    """The settings of a command line, checked as far as they can be before anything is loaded. Raises
    UserError.
    """
    parser = settings_parser(SETTINGS, description)
    run = Run(*parser.parse(with_default_deepspeed(arguments)))
    load_objective(run.locality.consecutive_expert_loss_type)
    if run.locality.anchored and not run.adapter.use_lora:
        raise UserError(
            "--distillation_weight and --gate_trust_weight compare with the adapters off: they "
            "need --use_lora True"
        )
    if idle := sorted(parser.given & without_effect(run)):
        run.say(
            "warning: " + ", ".join(f"--{name}" for name in idle) + ": no effect beside the other options"
        )
    run.train.output_dir = str(run.folder)
    run.train.remove_unused_columns = False
    _refuse_reentrant(run.train)
    _check_reporters(run.train)
    if run.locality.train_rerouting is not None:
        _check_rerouting(run)
    if run.locality.smooth_gates:
        _check_smoothing(run)
    if run.locality.has_target:
        hold_a_target(run)
    os.environ["TENSORBOARD_LOGGING_DIR"] = log_folder(run.model, run.folder.name)
    set_seed(run.train.seed)
    return run


def hold_a_target(run: Run) -> None:
    """What a target changes of the training options: the best checkpoint is the best that meets it."""
    settings, train = run.locality, run.train
    target_of(settings.target_ecr, settings.target_hit_rate, settings.quality_budget)
    if train.eval_strategy == "no":
        raise UserError("a target is held on validation text: leave --eval_strategy on")
    if train.metric_for_best_model == TrainSettings.metric_for_best_model:
        train.metric_for_best_model = "eval_dial_score"
    if settings.quality_reference is not None:
        control_losses(settings.quality_reference)
    elif settings.quality_budget is not None:
        train.eval_on_start = True


def without_effect(run: Run) -> set[str]:
    """Options that the other options leave nothing to do."""
    idle = {"output_dir", "remove_unused_columns"}
    if not run.adapter.use_lora:
        idle |= {"lora_rank", "lora_alpha", "target_modules", "lora_extra_modules", "save_merged"}
    if not needs_profile(run.adapter.daft_threshold) and not run.adapter.profile_only:
        idle |= {"ecr_profile", "profile_examples"}
    if run.locality.consecutive_expert_loss_weight == 0 and not run.locality.has_target:
        idle |= {"locality_schedule", "locality_on_prompt"}
    if run.locality.train_rerouting is None:
        idle |= {"train_rerouting_cache"}
    if not run.locality.smooth_gates:
        idle |= {"smooth_examples"}
    return idle


def _check_rerouting(run: Run) -> None:
    settings = run.locality
    check_rerouting(settings.train_rerouting or "", settings.train_rerouting_cache)
    if is_deepspeed_zero3_enabled():
        raise UserError("--train_rerouting: not under ZeRO-3, whose ranks hold shards of the gates")
    if run.train.gradient_checkpointing or run.train.activation_checkpointing:
        raise UserError(
            "--train_rerouting: leave gradient checkpointing out, what it recomputes would meet another cache"
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
    """The Trainer would find an unknown monitor, or one whose package is missing, only once it is made."""
    try:
        for reporter in get_reporting_integration_callbacks(train.report_to):
            reporter()
    except (ValueError, RuntimeError) as error:
        raise UserError(f"--report_to: {first_line(error)}") from None
