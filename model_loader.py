"""The models of the application: for evaluation, whole after training, saved with its adapter merged."""

from pathlib import Path

from transformers.integrations import is_deepspeed_zero3_enabled
from transformers.integrations.deepspeed import unset_hf_deepspeed_config

from config import Run
from dwellmoe.base_model import check_base_model
from dwellmoe.evaluation.evaluated_model import EvaluatedModel
from dwellmoe.evaluation.options import Options
from dwellmoe.families import find_moe_layers
from dwellmoe.files import replacing_path
from dwellmoe.loading import load_adapters, load_model, load_model_with_cache, load_tokenizer
from trainer import LocalityTrainer


def load_evaluated_model(options: Options) -> EvaluatedModel:
    """The model of the options with all its adapters, and its tokenizer. Raises UserError."""
    tokenizer = load_tokenizer(options.model)
    adapters = options.adapters
    check_base_model(adapters.values(), options.model.model_name, options.adapter.allow_other_base)
    engine = options.engine
    model = load_model_with_cache(options.model, engine) if engine else load_model(options.model)
    find_moe_layers(model, options.model.moe_module_name)  # refuses a wrong name early
    if adapters:
        model = load_adapters(model, adapters)
    name = Path(options.model.model_name).name
    return EvaluatedModel(model.eval(), tokenizer, find_moe_layers(model), name)


def trained_model(run: Run, trainer: LocalityTrainer):
    """The whole trained model on this rank; under ZeRO-3, which keeps only shards, loaded from its files."""
    if not is_deepspeed_zero3_enabled():
        return trainer.accelerator.unwrap_model(trainer.model)
    unset_hf_deepspeed_config()
    return load_adapters(load_model(run.model), {"tuned": str(run.folder)})


def save_merged(model, tokenizer, folder: Path) -> None:
    """Writes the model with its adapter merged into the weights, as an ordinary checkpoint; the folder
    appears complete or not at all.
    """
    merged = model.merge_and_unload()
    with replacing_path(folder) as beside:
        merged.save_pretrained(beside)
        tokenizer.save_pretrained(beside)
