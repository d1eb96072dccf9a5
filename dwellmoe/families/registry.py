"""Knows which families need words of their own: every file of this folder that defines `FAMILY`."""

from torch import nn
from transformers import PreTrainedConfig

from dwellmoe.families.base import MoeFamily
from dwellmoe.registry import Registry

_NO_FAMILY = (
    *("base", "deepseek_moe", "discovery", "expert_size", "gate_matrix", "lora_targets", "registry"),
    "settings",
)
FAMILIES = Registry("model family", "dwellmoe.families", "FAMILY", skip=_NO_FAMILY)


def special_families() -> dict[str, MoeFamily]:
    """`model_type -> MoeFamily` for the families that are not of the common shape."""
    families = [FAMILIES.get(name) for name in FAMILIES.names()]
    return {model_type: family for family in families for model_type in family.model_types}


def config_of(model: nn.Module) -> PreTrainedConfig | None:
    """The configuration of the model itself, found through PEFT, DeepSpeed and DDP wrappers alike."""
    configs = (getattr(module, "config", None) for module in model.modules())
    return next((config for config in configs if isinstance(config, PreTrainedConfig)), None)


def family_of(model: nn.Module) -> MoeFamily:
    """The family of a model: one from this folder, or the common shape."""
    config = config_of(model)
    types = [] if config is None else [config.get_text_config().model_type, config.model_type]
    families = special_families()
    return next((families[name] for name in types if name in families), MoeFamily())
