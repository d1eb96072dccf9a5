"""Which class of transformers runs a checkpoint as a language model of text, also a multimodal checkpoint."""

from typing import Any

from transformers import PreTrainedConfig
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING,
)

from dwellmoe.errors import UserError

NEXT_TOKEN = ("ForConditionalGeneration", "ForCausalLM")
"""How transformers ends the names of multimodal models that predict the next token."""


def text_model_class(config: PreTrainedConfig, name: str) -> tuple[Any, PreTrainedConfig]:
    """The model's class, and the configuration that it is built from; `name` is what messages call it.

    Raises UserError for a checkpoint that is no language model.
    """
    mapping = MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING if runs_whole(config) else MODEL_FOR_CAUSAL_LM_MAPPING
    if type(config) not in mapping:
        raise UserError(
            f"checkpoint '{name}': model_type '{config.model_type}' is not a language model of transformers"
        )
    model_class: Any = mapping[type(config)]
    if runs_whole(config) and not model_class.__name__.endswith(NEXT_TOKEN):
        raise UserError(
            f"checkpoint '{name}': {model_class.__name__} does not write a text token by token (model_type "
            f"'{config.model_type}'): it is no causal language model"
        )
    is_text_part = model_class.config_class is config.sub_configs.get("text_config")
    return model_class, config.get_text_config() if is_text_part else config


def runs_whole(config: PreTrainedConfig) -> bool:
    """Whether a multimodal checkpoint runs as a whole on text (Qwen3-VL-MoE, GLM-4V-MoE): transformers has no
    class for its text part alone, as it has for others (Qwen3.5-MoE, Llama 4).
    """
    kind = type(config)
    return kind not in MODEL_FOR_CAUSAL_LM_MAPPING and kind in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING


def quantised_by(config: PreTrainedConfig) -> str:
    """The method by which a configuration says that its weights are quantised; empty if they are not."""
    fields = quantisation_of(config)
    return str(fields.get("quant_method", "unknown")) if fields else ""


def quantisation_of(config: PreTrainedConfig) -> dict[str, Any]:
    """What a configuration says of how its weights are quantised; empty if they are not."""
    for part in (config, config.get_text_config()):
        if found := getattr(part, "quantization_config", None):
            return found if isinstance(found, dict) else vars(found)
    return {}
