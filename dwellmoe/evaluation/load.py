"""Loads a model with its tokenizer and all its adapters, in memory or with its experts in a cache."""

from collections.abc import Mapping
from pathlib import Path

from dwellmoe.base_model import check_base_model
from dwellmoe.evaluation.evaluated_model import EvaluatedModel
from dwellmoe.families import find_moe_layers
from dwellmoe.loading import load_adapters, load_model, load_model_with_cache, load_tokenizer
from dwellmoe.settings.engine import EngineSettings
from dwellmoe.settings.model import ModelSettings


def load_with_adapters(
    settings: ModelSettings,
    engine: EngineSettings | None,
    adapters: Mapping[str, str],
    *,
    expert_lora: str = "sparse",
    allow_other_base: bool = False,
) -> EvaluatedModel:
    """The model of the settings in evaluation mode. Raises UserError.

    engine       None: all experts in memory
    adapters     name -> folder; `active_variant` puts one of them on
    expert_lora  how LoRA of experts is computed, see `load_adapters`
    """
    tokenizer = load_tokenizer(settings)
    held_in = None if engine else settings.expert_format  # in a cache they are what the checkpoint says
    check_base_model(adapters.values(), settings.model_name, allow_other_base, held_in)
    model = load_model_with_cache(settings, engine) if engine else load_model(settings)
    find_moe_layers(model, settings.moe_module_name)  # refuses a wrong name early
    if adapters:
        model = load_adapters(model, adapters, expert_lora)
    return EvaluatedModel(model.eval(), tokenizer, find_moe_layers(model), Path(settings.model_name).name)
