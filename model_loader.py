"""The models of the application: for evaluation, and whole after training."""

import dataclasses
from pathlib import Path

from transformers.integrations import is_deepspeed_zero3_enabled
from transformers.integrations.deepspeed import unset_hf_deepspeed_config

from config import Run
from dwellmoe.base_model import check_base_model
from dwellmoe.evaluation.evaluated_model import EvaluatedModel
from dwellmoe.evaluation.options import Options
from dwellmoe.export.merged import is_part
from dwellmoe.families import find_moe_layers
from dwellmoe.loading import load_adapters, load_model, load_model_with_cache, load_tokenizer
from dwellmoe.merged_checkpoint import complete_checkpoint
from dwellmoe.settings.model import ModelSettings
from trainer import LocalityTrainer


def load_evaluated_model(options: Options) -> EvaluatedModel:
    """The model of the options with all its adapters, and its tokenizer. Raises UserError."""
    tokenizer = load_tokenizer(options.model)
    adapters = options.adapters
    allow_other, expert_format = options.adapter.allow_other_base, options.model.expert_format
    check_base_model(adapters.values(), options.model.model_name, allow_other, expert_format)
    engine = options.engine
    model = load_model_with_cache(options.model, engine) if engine else load_model(options.model)
    find_moe_layers(model, options.model.moe_module_name)  # refuses a wrong name early
    if adapters:
        model = load_adapters(model, adapters, options.adapter.expert_lora)
    name = Path(options.model.model_name).name
    return EvaluatedModel(model.eval(), tokenizer, find_moe_layers(model), name)


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
