"""Knows which families need words of their own: every file of this folder that defines `FAMILY`."""

import importlib
import pkgutil
from functools import cache

from torch import nn
from transformers import PreTrainedConfig

from dwellmoe.families.base import MoeFamily


@cache
def special_families() -> dict[str, MoeFamily]:
    """`model_type -> MoeFamily` for the families that are not of the common shape."""
    package = importlib.import_module(__package__ or "models")
    files = [
        importlib.import_module(f"{package.__name__}.{file.name}")
        for file in pkgutil.iter_modules(package.__path__)
    ]
    families = [file.FAMILY for file in files if hasattr(file, "FAMILY")]
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
