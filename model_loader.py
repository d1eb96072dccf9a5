"""The models of the application: for evaluation, and whole after training."""

import dataclasses
from pathlib import Path

from transformers.integrations import is_deepspeed_zero3_enabled
from transformers.integrations.deepspeed import unset_hf_deepspeed_config

from config import Run
from dwellmoe.evaluation.evaluated_model import EvaluatedModel
from dwellmoe.evaluation.load import load_with_adapters
from dwellmoe.evaluation.options import Options
from dwellmoe.export.merged import is_part
from dwellmoe.loading import load_adapters, load_model
from dwellmoe.merged_checkpoint import complete_checkpoint
from dwellmoe.settings.model import ModelSettings
from trainer import LocalityTrainer


def load_evaluated_model(options: Options) -> EvaluatedModel:
    """The model of the options with all its adapters, and its tokenizer. Raises UserError."""
    return load_with_adapters(
        options.model,
        options.engine,
        options.adapters,
        expert_lora=options.adapter.expert_lora,
        allow_other_base=options.adapter.allow_other_base,
    )


def trained_model(run: Run, trainer: LocalityTrainer):
    """The whole trained model on this rank, in 16 or 32 bits: loaded from its files under ZeRO-3, which keeps
    only shards, and where its experts are held in low bits.
    """
    if not is_deepspeed_zero3_enabled() and not run.model.expert_format:
        return trainer.accelerator.unwrap_model(trainer.model)
    unset_hf_deepspeed_config()
    whole = dataclasses.replace(run.model, expert_format=None)
    return load_adapters(load_model(whole), {"tuned": str(run.folder)})


def complete_trained(model, folder: Path, base: ModelSettings) -> None:
    """Adds to a model trained in full and saved in `folder` what its base holds besides."""
    complete_checkpoint(folder, base.model_name, is_part=is_part(model, base), keep_types=False)
