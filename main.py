"""Fine-tunes a MoE model so that consecutive tokens reuse the same experts.

deepspeed main.py --model_name PATH --dataset_name mmlu ...   (or torchrun, accelerate launch, python)
"""

if __name__ == "__main__":  # before the imports below, which take seconds
    from dwellmoe.interrupt import end_quietly_on_interrupt

    end_quietly_on_interrupt()
    from dwellmoe.launch import begin

    begin("dwellmoe.locality.command_line:parse_training", "dwellmoe.training_checks:check_training")

import json
import os
import sys
from contextlib import nullcontext
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader
from transformers.integrations import is_deepspeed_zero3_enabled

from config import Run, parse_run
from dwellmoe.base_model import BASE_FILE, BaseModel, base_bytes, base_model, full_name
from dwellmoe.checkpoints import (
    check_room,
    check_steps_left,
    checkpoint_to_resume,
    checkpoints_kept,
    complete_checkpoints,
    make_run_folder,
    names_of,
    remove_checkpoints,
)
from dwellmoe.data.collate import PackingCollator, PaddingCollator
from dwellmoe.data.context import check_context, context_tokens
from dwellmoe.data.task import Task, load_task
from dwellmoe.data.tokenised import rows_name, tokenise_split
from dwellmoe.data.wording import WORDING_FILE, Wording, as_asked, wording_of
from dwellmoe.errors import UserError, first_line, run_command
from dwellmoe.experts import use_expert_lora
from dwellmoe.experts.formats import AS_STORED
from dwellmoe.export.merged import save_merged
from dwellmoe.families import MoeLayer, find_moe_layers
from dwellmoe.families.packing import mixes_packed_requests
from dwellmoe.families.padding import depends_on_padding
from dwellmoe.files import written_whole
from dwellmoe.folder_lock import only_writer
from dwellmoe.loading import load_config, load_model, load_streamed_model, load_tokenizer, quiet
from dwellmoe.locality.closest_to_target import EvaluateAtEnd
from dwellmoe.locality.elastic_lora import (
    LoraShape,
    add_elastic_lora,
    savings,
    select_layers,
    trainable_count,
)
from dwellmoe.locality.gradient_check import GradientCheck
from dwellmoe.locality.model_card import library_versions, model_card
from dwellmoe.locality.profile import PROFILE_NAME, measure_profile, read_profile, write_profile
from dwellmoe.locality.smooth_gates import set_gates, smoothed_gates
from dwellmoe.locality.targets import control_losses
from dwellmoe.locality.threshold import needs_profile
from dwellmoe.log import warn_once
from dwellmoe.offload import ReadFault
from dwellmoe.run_identity import (
    DEEPSPEED,
    LAYERS,
    RANKS,
    RUN_FILE,
    WEIGHTS,
    check_same_layers,
    check_same_run,
    counting,
    defaults_of,
)
from dwellmoe.training_checks import OTHER_FOLDER
from model_loader import complete_trained, trained_model
from trainer import AnotherRun, LocalityTrainer, RoutingFigures

SETTINGS = ("model", "data", "adapter", "locality", "streaming")
"""What of a run its summary holds, besides the Trainer's options."""


def main() -> None:
    run = parse_run(sys.argv[1:])
    quiet()
    if run.data.data_preprocess_only:
        load_rows(run, *load_task_and_tokenizer(run))
        return
    make_run_folder(run.folder, "--lora_save_path")
    if "tensorboard" in (run.train.report_to or ()):
        make_run_folder(Path(os.environ["TENSORBOARD_LOGGING_DIR"]), "TensorBoard's folder")
    first = run.train.process_index == 0
    if run.hub and first and not run.adapter.profile_only:
        run = replace(run, hub=run.hub.make())
    with only_writer(run.folder, OTHER_FOLDER) if first else nullcontext():
        train(run)


def load_task_and_tokenizer(run: Run) -> tuple[Task, Any]:
    """The task, with the wording that is used, and the tokenizer."""
    tokenizer = load_tokenizer(run.model)
    task = load_task(run.data.dataset_name, run.data.skip_faulty)
    return as_asked(task, tokenizer, run.data.use_chat_template), tokenizer


def train(run: Run) -> None:
    """Trains and saves; mistakes are found before an earlier run's checkpoints are removed."""
    task, tokenizer = load_task_and_tokenizer(run)
    train_rows, validation_rows = load_rows(run, task, tokenizer)
    streams = run.streaming.expert_budget is not None  # the experts are then what the checkpoint says
    base = base_model(run.model.model_name, None if streams else run.model.expert_format)
    now = identity(run, train_rows, validation_rows, base)
    checkpoint, same_run = find_checkpoint(run, now)
    model = load_base(run)
    layers = find_moe_layers(model, run.model.moe_module_name)
    check_packing(run, model)
    validate_alone(run, model)
    collator = make_collator(run, tokenizer)
    selected = choose_layers(run, model, layers, train_rows, collator)
    if run.adapter.profile_only:
        return
    now[LAYERS] = [layer.layer_id for layer in selected]
    if checkpoint:
        check_same_layers(checkpoint, now[LAYERS])
    smoothed = {} if checkpoint else smooth(run, model, selected, train_rows, collator)
    model = make_trainable(run, model, selected)
    set_gates(model, smoothed)
    report_selection(run, model, selected, layers)
    wording = wording_of(task)
    records = {BASE_FILE: base._asdict(), RUN_FILE: now, WORDING_FILE: asdict(wording)}
    trainer = make_trainer(run, model, selected, train_rows, validation_rows, collator, records)
    if not same_run:
        trainer.add_callback(AnotherRun())
    check_free_space(run, model)
    if checkpoint is None and run.train.process_index == 0:
        remove_checkpoints(run.folder)
    run_trainer(run, trainer, checkpoint)
    if trainer.state.global_step == 0:
        raise UserError(f"{task.name}: too few training examples for a single step; nothing was trained")
    save(run, trainer, tokenizer, selected, wording)


def load_base(run: Run):
    """The model to train; with --expert_budget without its experts, which are read while it trains."""
    budget = run.streaming.expert_budget
    return load_model(run.model) if budget is None else load_streamed_model(run.model, budget)


def check_packing(run: Run, model) -> None:
    """UserError where packed requests would silently see one another."""
    if not run.data.packing:
        return
    if is_deepspeed_zero3_enabled():
        warn_once("--packing: under ZeRO-3 it is not checked that this model keeps packed requests apart")
    elif mixes_packed_requests(model):
        raise UserError(
            f"--packing: {model.config.model_type} does not keep the packed requests of a row apart in "
            "transformers; train without it"
        )


def validate_alone(run: Run, model) -> None:
    """One example a validation batch where padding would change what is measured."""
    if run.train.per_device_eval_batch_size > 1 and depends_on_padding(model):
        run.train.per_device_eval_batch_size = 1
        warn_once(
            f"{model.config.model_type}: validated one example at a time, since transformers gives a padded "
            "request other logits; training batches are padded all the same"
        )


def run_trainer(run: Run, trainer: LocalityTrainer, checkpoint: Path | None) -> None:
    """UserError for a checkpoint of tensors of other shapes, as of another base model (--resume_anyway), and
    for experts that cannot be read any more.
    """
    try:
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    except ReadFault as error:
        whole = names_of(complete_checkpoints(run.folder))
        raise UserError(
            f"after step {trainer.state.global_step}: {error}; once the file is as it was, go on with "
            f"--resume_from_checkpoint auto; complete checkpoints: {whole}"
        ) from None
    except ImportError as error:  # of a package that an option asks for
        raise UserError(first_line(error)) from None
    except RuntimeError as error:
        if checkpoint is None or "size mismatch" not in str(error):
            raise
        raise UserError(f"'{checkpoint}' does not fit the model: {first_line(error)}") from None


def check_free_space(run: Run, model) -> None:
    """UserError, before the training, where its files would not fit on the disk."""
    weights = 4 * trainable_count(model)
    moments = 0 if run.train.save_only_model or "adam" not in str(run.train.optim) else 2 * weights
    merged = base_bytes(run.model.model_name) if run.adapter.save_merged and run.adapter.use_lora else 0
    needed = {"a checkpoint": weights + moments, "the result": weights, "the merged model": merged}
    check_room(run.folder, needed)


def own_settings(run: Run) -> tuple:
    """The settings that are this project's own."""
    return run.model, run.data, run.adapter, run.locality


def identity(run: Run, train_rows, validation_rows, base: BaseModel) -> dict[str, Any]:
    """What makes another run the same as this one."""
    options = {name: value for each in own_settings(run) for name, value in asdict(each).items()}
    plugin = run.train.deepspeed_plugin
    return counting(options | run.train.to_dict()) | {
        "training rows": rows_name(train_rows),
        "validation rows": rows_name(validation_rows),
        WEIGHTS: base.fingerprint,
        DEEPSPEED: plugin and f"ZeRO stage {plugin.zero_stage}",
        RANKS: run.train.world_size,
    }


def find_checkpoint(run: Run, now: dict[str, Any]) -> tuple[Path | None, bool]:
    """The checkpoint to resume, None for a new run, and whether it is of the same run."""
    requested = run.train.resume_from_checkpoint
    checkpoint = checkpoint_to_resume(run.folder, requested, run.adapter.overwrite_output)
    if requested:
        run.report(
            f"resuming from {checkpoint}" if checkpoint else "no complete checkpoint yet: starting anew"
        )
    check_steps_left(checkpoint, run.train.max_steps)
    if checkpoint is None:
        return None, True
    defaults = defaults_of(*own_settings(run), run.train)
    return checkpoint, check_same_run(checkpoint, now, run.adapter.resume_anyway, defaults)


def load_rows(run: Run, task: Task, tokenizer):
    """Tokenised training and validation rows."""
    limits = {"train": run.data.limit_train, "validation": run.data.limit_validation}
    train_rows, validation_rows = (
        tokenise_split(task, split, tokenizer, run.data.max_words_len, limit=limit, seed=run.train.seed)
        for split, limit in limits.items()
    )
    check_rows(run, train_rows, validation_rows)
    run.report(f"{task.name}: {len(train_rows)} training and {len(validation_rows)} validation examples")
    return train_rows, validation_rows


def check_rows(run: Run, *splits) -> None:
    """Raises UserError for rows beyond the model's context, unless they are allowed."""
    context = context_tokens(load_config(run.model))
    if context is None or run.data.max_words_len <= context:
        return
    for rows, name in zip(splits, ("training", "validation"), strict=True):
        lengths = [len(ids) for ids in rows["input_ids"]]
        check_context(f"{name} examples", lengths, context, run.data.allow_beyond_context)


def make_collator(run: Run, tokenizer) -> PaddingCollator | PackingCollator:
    if run.data.packing:
        return PackingCollator(tokenizer.pad_token_id, run.data.max_words_len)
    return PaddingCollator(tokenizer.pad_token_id)


def choose_layers(run: Run, model, layers: list[MoeLayer], rows, collator) -> list[MoeLayer]:
    """The layers to train: all, or those that `--daft_threshold` picks by their ECR."""
    threshold = run.adapter.daft_threshold
    if not needs_profile(threshold) and not run.adapter.profile_only:
        return layers
    return select_layers(layers, profile_of(run, model, layers, rows, collator), threshold)


def profile_of(run: Run, model, layers: list[MoeLayer], rows, collator) -> np.ndarray:
    """ECR of each layer: from the named file, from the run's folder, or measured and written there."""
    path = Path(run.adapter.ecr_profile or run.folder / PROFILE_NAME)
    if run.adapter.ecr_profile or (path.exists() and not run.adapter.overwrite_output):
        run.report(f"ECR profile read from {path}")
        return read_profile(path, layers)
    if is_deepspeed_zero3_enabled():
        raise UserError(
            f"no ECR profile at '{path}': under ZeRO-3 make it first, with python main.py --profile_only"
        )
    ecr_L = measure_profile(model, layers, sample_of(rows, run.adapter.profile_examples, collator))
    if run.train.process_index == 0:
        write_profile(path, layers, ecr_L)
    run.report(f"ECR profile of {run.adapter.profile_examples} training examples written to {path}")
    return ecr_L


def sample_of(rows, examples: int, collator) -> DataLoader:
    """The first of the training examples, batched."""
    return DataLoader(rows.select(range(min(examples, len(rows)))), batch_size=4, collate_fn=collator)


def smooth(run: Run, model, selected: list[MoeLayer], rows, collator) -> dict[int, Tensor]:
    """Smoothed gates of the trained layers, with `--smooth_gates`; without it none."""
    settings = run.locality
    if not settings.smooth_gates:
        return {}
    sample = sample_of(rows, settings.smooth_examples, collator)
    # Without the Trainer's autocast a model trained in bfloat16 would run several times slower here.
    with torch.autocast(run.train.device.type, torch.bfloat16, enabled=run.train.bf16):
        return smoothed_gates(
            model, selected, sample, settings.smooth_gates, on_prompt=settings.locality_on_prompt
        )


def make_trainable(run: Run, model, selected: list[MoeLayer]):
    """The model with only the selected layers trainable: LoRA in them, or without LoRA all their weights."""
    if run.adapter.use_lora:
        adapter = run.adapter
        names = tuple(adapter.target_names), tuple(adapter.extra_names)
        model = add_elastic_lora(model, selected, LoraShape(adapter.lora_rank, adapter.lora_alpha, *names))
        if adapter.expert_lora == "sparse":
            use_expert_lora(model)
        model.active_peft_config.base_model_name_or_path = full_name(run.model.model_name)
        return model
    if needs_profile(run.adapter.daft_threshold):
        model.requires_grad_(False)
        for layer in selected:
            model.get_submodule(layer.block).requires_grad_(True)
            model.get_submodule(layer.attention).requires_grad_(True)
    return model


def report_selection(run: Run, model, selected: list[MoeLayer], layers: list[MoeLayer]) -> None:
    """What is trained, and what leaving layers out saves."""
    saved = savings(trainable_count(model), selected, layers)
    names = ", ".join(str(layer.layer_id) for layer in selected)
    run.report(
        f"training {len(selected)} of {len(layers)} MoE layers ({names}): {saved.trainable:,} trainable "
        f"parameters; estimated saving against all layers: {saved.memory_saved_bytes / 2**20:.1f} MiB "
        f"and {saved.time_saved_share:.0%} of a step's time"
    )


def make_trainer(
    run: Run, model, selected, train_rows, validation_rows, collator, records: dict[str, Any]
) -> LocalityTrainer:
    reference = run.locality.quality_reference
    trainer = LocalityTrainer(
        model,
        run.train,
        train_dataset=train_rows,
        eval_dataset=validation_rows,
        data_collator=collator,
        locality=run.locality,
        trained_layers=selected,
        control_losses=control_losses(reference) if reference else (),
        records=records,
    )
    trainer.add_callback(EvaluateAtEnd())
    if run.adapter.use_lora:  # in full training, a part that a text does not use may stay as it is
        trainer.add_callback(GradientCheck())
    trainer.add_callback(RoutingFigures(trainer))
    return trainer


def target_result(run: Run, trainer: LocalityTrainer) -> dict | None:
    """Prints and gives how close the run came to its target; None where none was given."""
    closest = trainer.closest_to_target
    if closest is None:
        return None
    run.report(closest.verdict())
    return closest.result()._asdict()


def save(run: Run, trainer: LocalityTrainer, tokenizer, selected: list[MoeLayer], wording: Wording) -> None:
    """The final adapter (the best by validation), wording, settings, and on request the merged model."""
    with checkpoints_kept(run.folder), written_whole(run.folder) as beside:
        trainer.save_model(str(beside))
        if run.train.process_index == 0:
            if not run.adapter.use_lora and not is_deepspeed_zero3_enabled():
                complete_trained(trainer.accelerator.unwrap_model(trainer.model), beside, run.model)
            tokenizer.save_pretrained(beside)
            write_summary(run, trainer, selected, beside / "training_summary.json")
            write_card(run, trainer, selected, wording.task, beside / "README.md")
    if run.adapter.save_merged and run.adapter.use_lora and run.train.process_index == 0:
        with checkpoints_kept(run.folder):
            save_merged(trained_model(run, trainer), tokenizer, run.folder / "merged", run.model)
            wording.save(run.folder / "merged")
    if run.hub and run.train.process_index == 0 and (address := run.hub.upload(run.folder)):
        run.report(f"uploaded: {address}")
    run.report(
        f"saved to {run.folder}; see the curves with: tensorboard --logdir=./logs{run.model.model_key}"
    )


def write_card(run: Run, trainer: LocalityTrainer, selected: list[MoeLayer], data: str, path: Path) -> None:
    """The model card, with the first validation and that of the checkpoint that is kept."""
    state, locality, adapter = trainer.state, run.locality, run.adapter
    kept = state.best_global_step or state.global_step
    scores = {entry["step"]: entry for entry in state.log_history if "eval_lm_loss" in entry}
    history = [(step, scores[step]) for step in sorted({min(scores, default=0), kept}) if step in scores]
    lora = f"rank {adapter.lora_rank}, alpha {adapter.lora_alpha}" if adapter.use_lora else "none"
    facts = {
        "base model": "{name}, fingerprint {fingerprint}".format(**trainer.records[BASE_FILE]),
        "revision of the base": getattr(trainer.model.config, "_commit_hash", None) or "a local folder",
        "experts held in": trainer.records[BASE_FILE]["expert_format"] or _held_in(run),
        "data set": f"{data}, {trainer.num_examples(trainer.get_train_dataloader())} training examples",
        "locality objective": f"{locality.consecutive_expert_loss_type}, weight {trainer.locality_weight:g}",
        "target": trainer.closest_to_target.verdict() if trainer.closest_to_target else "none",
        "LoRA": lora,
        "trained MoE layers": ", ".join(str(layer.layer_id) for layer in selected),
        "steps": f"{state.global_step}, the kept checkpoint is of step {kept}",
        "learning rate, seed": f"{run.train.learning_rate:g}, {run.train.seed}",
        "libraries": library_versions(),
    }
    path.write_text(model_card(run.folder, full_name(run.model.model_name), adapter.use_lora, facts, history))


def _held_in(run: Run) -> str:
    return "the type of the other weights" if run.streaming.expert_budget is None else AS_STORED


def write_summary(run: Run, trainer: LocalityTrainer, selected: list[MoeLayer], path: Path) -> None:
    """Settings, trained layers and the whole log as JSON."""
    summary = {
        "settings": {name: asdict(getattr(run, name)) for name in SETTINGS},
        "train": run.train.to_sanitized_dict(),
        "trained_layers": [layer.layer_id for layer in selected],
        "controller": target_result(run, trainer),
        "best_checkpoint": trainer.state.best_model_checkpoint,
        "log_history": trainer.state.log_history,
    }
    path.write_text(json.dumps(summary, indent=1, default=str) + "\n")


if __name__ == "__main__":
    try:
        run_command(main)
    finally:  # gloo's threads can abort a process that ends with them
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()
