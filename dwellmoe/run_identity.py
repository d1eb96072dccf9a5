"""What makes two training runs the same: kept in every checkpoint, and compared when a run is resumed.

Everything counts but what MAY_CHANGE lists: where a run is, how long it is, and how often it logs,
validates and saves. Model and data set count by their content, not by their names.
"""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dwellmoe.errors import UserError
from dwellmoe.log import warn_once

RUN_FILE = "run.json"
MAY_GROW = ("num_train_epochs", "max_steps")
_NAMES = "model_name dataset_name model_key moe_module_name trust_remote_code run_name project"
_FOLDERS = "lora_save_path output_dir save_merged overwrite_output profile_only profile_examples"
_RESUMING = "resume_from_checkpoint resume_anyway allow_other_base ignore_data_skip enable_jit_checkpoint"
_COMPUTING = """experts_implementation expert_lora use_cpu local_rank deepspeed debug fsdp fsdp_config
    use_liger_kernel gradient_checkpointing gradient_checkpointing_kwargs activation_checkpointing
    activation_checkpointing_kwargs torch_empty_cache_steps skip_memory_metrics parallelism_config
    accelerator_config bf16_full_eval fp16_full_eval per_device_eval_batch_size"""
_SHOWING = """disable_tqdm report_to batch_eval_metrics prediction_loss_only do_train do_eval do_predict
    restore_callback_states_from_checkpoint load_best_model_at_end data_preprocess_only"""
MAY_CHANGE = frozenset(f"{_NAMES} {_FOLDERS} {_RESUMING} {_COMPUTING} {_SHOWING}".split())
GROUPS_MAY_CHANGE = (
    *("logging_", "log_", "eval_", "save_", "hub_", "push_to_", "trackio_", "include_"),
    *("dataloader_num_", "dataloader_p", "dataloader_m", "ddp_", "torch_compile"),
)
"""Beginnings of names."""
DEEPSPEED, RANKS, WEIGHTS = "DeepSpeed", "ranks", "weights of the base model"
LAYERS = "trained MoE layers"
"""Known only with the model and the ECR profile at hand; `check_same_layers` compares them."""
_TENSORS = (
    *("use_lora", "lora_rank", "target_modules", "lora_extra_modules", "train_scope", "daft_threshold"),
    "optim",
)
"""Options that decide which tensors a checkpoint holds."""


def counting(options: Mapping[str, Any]) -> dict[str, Any]:
    """The options that count, as JSON gives them back."""
    kept = {
        name: value
        for name, value in options.items()
        if name not in MAY_CHANGE and not name.startswith(GROUPS_MAY_CHANGE)
    }
    return json.loads(json.dumps(kept, default=str))


def defaults_of(*settings: Any) -> dict[str, Any]:
    """The default of each option in these dataclasses."""
    return {
        entry.name: entry.default if entry.default_factory is dataclasses.MISSING else entry.default_factory()
        for each in settings
        for entry in dataclasses.fields(each)
    }


def check_same_run(
    checkpoint: Path, now: Mapping[str, Any], anyway: bool, defaults: Mapping[str, Any] | None = None
) -> bool:
    """Whether a checkpoint is of the run that goes on. Raises UserError, with both values, where it is not
    and the user did not ask for `anyway`, and where its tensors could not be read.

    An option that the checkpoint's record lacks, since it did not exist then, had its default.
    """
    before = _read(checkpoint / RUN_FILE)
    if before is None:
        warn_once(f"'{checkpoint}' has no {RUN_FILE}: not checked whether its options and data were the same")
        return True
    before = counting(defaults or {}) | before
    names = sorted({*before, *now} - {LAYERS})
    changed = {name: (before.get(name), now.get(name)) for name in names if _differs(name, before, now)}
    if not changed:
        return True
    fault = f"'{checkpoint}' is of another run: {listed(changed)}"
    if unreadable := {name: changed[name] for name in changed if _unreadable(name, before)}:
        fixed = ", ".join(map(_label, unreadable))
        raise UserError(f"{fault}; give {fixed} as before: the checkpoint's tensors depend on it")
    if not anyway:
        raise UserError(f"{fault}; give the same again, or go on all the same with --resume_anyway True")
    warn_once(f"{fault}; it goes on all the same, and its best checkpoint is chosen anew (--resume_anyway)")
    return False


def check_same_layers(checkpoint: Path, layers: list[int]) -> None:
    """Raises UserError for a checkpoint of other layers than these, as after a change of the ECR profile."""
    before = (_read(checkpoint / RUN_FILE) or {}).get(LAYERS, layers)
    if before != layers:
        raise UserError(
            f"'{checkpoint}' is of another run: {listed({LAYERS: (before, layers)})}; give the ECR profile "
            "as before: the checkpoint's tensors depend on it"
        )


def check_same_options(checkpoint: Path, options: Mapping[str, Any], defaults: Mapping[str, Any]) -> None:
    """Raises UserError as `check_same_run` will, as far as these options tell: before torch is imported."""
    if record := _read(checkpoint / RUN_FILE):
        before = counting(defaults) | record
        known = {name: value for name, value in counting(options).items() if name in before}
        check_same_run(checkpoint, before | known, anyway=False, defaults=defaults)


def _differs(name: str, before: Mapping[str, Any], now: Mapping[str, Any]) -> bool:
    old, new = before.get(name), now.get(name)
    if name in MAY_GROW and old is not None and new is not None:
        return new < old
    return new != old


def _unreadable(name: str, before: Mapping[str, Any]) -> bool:
    return name in _TENSORS or name == DEEPSPEED or (name == RANKS and bool(before.get(DEEPSPEED)))


def listed(changed: Mapping[str, tuple]) -> str:
    """Settings with both values, as messages say them; a name without a space is an option's."""
    shown = (f"{_label(name)} was {_text(old)}, is {_text(new)}" for name, (old, new) in changed.items())
    return "; ".join(sorted(shown))


def _label(name: str) -> str:
    return name if name in (DEEPSPEED, RANKS) or " " in name else f"--{name}"


def _text(value: Any) -> str:
    return "none" if value in (None, "") else str(value)


def _read(path: Path) -> dict[str, Any] | None:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise UserError(f"'{path}' is no record of a run")
    return found
