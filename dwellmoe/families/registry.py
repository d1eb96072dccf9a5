"""The registry of model families: the files of the folder `special`, and what a user registers."""

from torch import nn
from transformers import PreTrainedConfig

from dwellmoe.families import special
from dwellmoe.families.base import MoeFamily
from dwellmoe.registry import Registry

FAMILIES = Registry("model family", special.__name__, "FAMILY")


def special_families() -> dict[str, MoeFamily]:
    """`model_type -> MoeFamily` for the families that are not of the common shape."""
    found = {}
    for name in FAMILIES.names():
        family = FAMILIES.get(name)
        found |= dict.fromkeys(family.model_types or (name,), family)
    return found


def config_of(model: nn.Module) -> PreTrainedConfig | None:
    """The configuration of the model itself, found through PEFT, DeepSpeed and DDP wrappers alike."""
    configs = (getattr(module, "config", None) for module in model.modules())
    return next((config for config in configs if isinstance(config, PreTrainedConfig)), None)


def family_of(model: nn.Module) -> MoeFamily:
    """The registered family of the model's `model_type`, or the common shape."""
    config = config_of(model)
    types = [] if config is None else [config.get_text_config().model_type, config.model_type]
    families = special_families()
    return next((families[name] for name in types if name in families), MoeFamily())
