"""What can be wrong with a training run and is found without torch, before anything is loaded."""

import json
import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from dwellmoe.base_model import base_model
from dwellmoe.cache.budget import check_capacity
from dwellmoe.checkpoints import check_steps_left, checkpoint_to_resume, make_run_folder
from dwellmoe.data.check_data import check_data
from dwellmoe.data.task import load_task
from dwellmoe.errors import UserError
from dwellmoe.folder_lock import only_writer
from dwellmoe.locality.command_line import TrainingOptions
from dwellmoe.locality.module_names import check_module_names
from dwellmoe.locality.objectives import check_objective
from dwellmoe.locality.rerouting_options import check_rerouting
from dwellmoe.locality.settings import AdapterSettings, LocalitySettings
from dwellmoe.locality.targets import control_losses, target_of
from dwellmoe.locality.threshold import needs_profile
from dwellmoe.model_folder import check_model_folder, hold_as_packed, read_config, why_frozen
from dwellmoe.offload.check_settings import naming
from dwellmoe.offload.io.packed_index import is_packed
from dwellmoe.offload.io.shards import find_shards
from dwellmoe.run_identity import WEIGHTS, check_same_options, defaults_of

OTHER_FOLDER = "choose another --lora_save_path"
NUMBERS = (
    *("per_device_train_batch_size", "gradient_accumulation_steps", "learning_rate", "num_train_epochs"),
    *("max_steps", "seed"),
)
"""Options of the Trainer that nothing changes between the command line and the run."""


def check_training(options: TrainingOptions) -> None:
    """Raises UserError for whatever is wrong with options, model, data or folder and is known by now."""
    check_options(options)
    check_model_folder(options.model.model_name)
    _check_names(options)
    check_data(load_task(options.data.dataset_name, options.data.skip_faulty), ("train", "validation"))
    if not options.data.data_preprocess_only:
        _check_folder(options)


def check_options(options: TrainingOptions) -> None:
    """Raises UserError for options that cannot be, or not together; imports torch only for an objective's."""
    locality, adapter = options.locality, options.adapter
    hold_as_packed(options.model)
    if locality.compares_with_reference and not adapter.use_lora:
        raise UserError(
            "--distillation_weight and --gate_kl_weight need --use_lora True: the reference model is the one "
            "with its adapters off"
        )
    if options.model.expert_format:
        _check_frozen(why_frozen(options.model), adapter)
    if adapter.save_merged and is_packed(options.model.model_name):
        raise UserError(
            f"'{options.model.model_name}' is packed: leave out --save_merged, and merge the adapter into "
            "the checkpoint that was packed, with `dwellmoe export hf --model_name CHECKPOINT`"
        )
    if options.streaming.expert_budget is not None:
        _check_expert_budget(options, f"--expert_budget {options.streaming.expert_budget}")
    if locality.has_target:
        _check_target(options, locality)
    if (
        adapter.ecr_profile
        and needs_profile(adapter.daft_threshold)
        and not os.path.isfile(adapter.ecr_profile)
    ):
        raise UserError(f"--ecr_profile {adapter.ecr_profile}: no such file")
    if locality.train_rerouting is not None:
        check_rerouting(locality.train_rerouting, locality.train_rerouting_cache)
    _check_deepspeed(options.library)
    check_objective(locality.consecutive_expert_loss_type)


def _check_frozen(why: str, adapter: AdapterSettings) -> None:
    if not adapter.use_lora:
        raise UserError(f"{why} freezes the experts: it needs --use_lora True")
    if adapter.expert_lora != "sparse":
        raise UserError(
            f"{why} does not go with --expert_lora {adapter.expert_lora}, which needs experts in 16 or 32 "
            "bits: leave one of them out"
        )


def _check_expert_budget(options: TrainingOptions, given: str) -> None:
    """Raises UserError for a budget that is none, and for options that streamed experts do not go with."""
    adapter = options.adapter
    with naming("expert_budget", options.streaming.expert_budget or ""):
        check_capacity((options.streaming.expert_budget or "").strip())
    if not adapter.use_lora:
        raise UserError(f"{given} freezes the experts: it needs --use_lora True")
    if adapter.expert_lora != "sparse":
        raise UserError(f"{given}: leave out --expert_lora {adapter.expert_lora}, which needs them in memory")
    if adapter.save_merged:
        raise UserError(
            f"{given}: leave out --save_merged, which needs the whole model in memory: merge the adapter "
            "with `dwellmoe export hf` where it fits"
        )


def _check_target(options: TrainingOptions, locality: LocalitySettings) -> None:
    target_of(locality.target_ecr, locality.target_hit_rate, locality.quality_budget)
    if options.trainer.eval_strategy == "no":
        raise UserError("--eval_strategy no: a target needs validations")
    if locality.quality_reference is not None:
        control_losses(locality.quality_reference)


def _check_deepspeed(library: Mapping[str, Any]) -> None:
    """UserError for a file of --deepspeed that is missing or no JSON."""
    path = library.get("deepspeed")
    if not isinstance(path, str):
        return
    try:
        json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"--deepspeed {path}: {error.strerror}") from None
    except (ValueError, RecursionError):
        raise UserError(f"--deepspeed {path}: not JSON") from None


def _check_names(options: TrainingOptions) -> None:
    """UserError for a name of --target_modules or --moe_module_name that no module of the model can have."""
    folder, block = Path(options.model.model_name), options.model.moe_module_name
    if folder.is_dir() and (options.adapter.use_lora or block):
        names = ()
        with suppress(UserError):  # of a checkpoint in another format, in which no names are looked up
            names = find_shards(str(folder)).tensors
        if not names:
            return
        config = read_config(folder)
        check_module_names([block] if block else [], config, names, "--moe_module_name")
        check_module_names(options.adapter.target_names if options.adapter.use_lora else [], config, names)


def _check_folder(options: TrainingOptions) -> None:
    """UserError where the run's folder cannot be written, or holds another run."""
    folder, trainer = Path(options.adapter.lora_save_path), options.trainer
    checkpoint = checkpoint_to_resume(
        folder, trainer.resume_from_checkpoint, options.adapter.overwrite_output
    )
    check_steps_left(checkpoint, trainer.max_steps)
    if checkpoint and not options.adapter.resume_anyway:
        known = (options.model, options.data, options.adapter, options.locality, trainer)
        check_same_options(checkpoint, _known(options), defaults_of(*known))
    make_run_folder(folder, "--lora_save_path")
    if os.environ.get("RANK", "0") == "0":  # the others would find the folder taken by this one
        with only_writer(folder, OTHER_FOLDER):
            pass


def _known(options: TrainingOptions) -> dict[str, Any]:
    """What of a run's identity is known by now."""
    known: dict[str, Any] = {name: getattr(options.trainer, name) for name in NUMBERS}
    for settings in (options.model, options.data, options.adapter, options.locality):
        known |= asdict(settings)
    if Path(options.model.model_name).is_dir():
        known[WEIGHTS] = base_model(options.model.model_name).fingerprint
    return known
