"""Every MoE family that the installed transformers has, found by itself, as a tiny random model."""

import re
from functools import cache
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES, model_type_to_module_name
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES,
)

from dwellmoe.families.text_model import text_model_class
from tests.tiny_models import MULTIMODAL, WHOLE_MULTIMODAL, tiny_config, tiny_model, tiny_multimodal

SHAPE = "its experts have a shape of their own, which is refused by name (tests/offload/test_every_family.py)"
NOT_CHECKED = {
    "dbrx": SHAPE,
    "diffusion_gemma": "it writes blocks by diffusion, which is refused by name (tests/families)",
    "doge": SHAPE,
    "jetmoe": SHAPE,
}
"""Family -> why it is left out. A family that is new in transformers and cannot be checked fails here until
it is made to work, or is listed with its reason.
"""
LARGEST = 3_000_000
"""Parameters of a tiny model at most."""


def moe_families() -> list[str]:
    """The language models of transformers, for text or for images and text, that have experts."""
    names = [*MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, *MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES]
    return sorted({name for name in names if name in CONFIG_MAPPING_NAMES and _has_experts(name)})


@cache
def _has_experts(name: str) -> bool:
    module = model_type_to_module_name(name)
    file = Path(transformers.__file__).parent / "models" / module / f"modeling_{module}.py"
    return file.exists() and bool(re.search(r"^class \w*(Experts|M[oO]E)\w*\(", file.read_text(), re.M))


def made(family: str) -> Any:
    """A tiny random model as it would be published."""
    if family in MULTIMODAL | WHOLE_MULTIMODAL:
        return tiny_multimodal(family)
    model_class, config = text_model_class(tiny_config(family), family)
    with torch.device("meta"):
        size = model_class(config).num_parameters()
    assert size < LARGEST, "sizes for its configuration are missing in tiny_models.py"
    return tiny_model(family)
