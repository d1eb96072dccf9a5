"""The MoE models: where their routers and experts sit, and one architecture that transformers lacks."""

import dwellmoe.families.deepseek_moe  # noqa: F401 - registers the architecture
from dwellmoe.families.base import MoeFamily, MoeLayer, expert_bytes, expert_parameters
from dwellmoe.families.discovery import find_moe_layers, gate_matrix, is_of_other_modality
from dwellmoe.families.lora_targets import LayerTargets, lora_targets, target_names
from dwellmoe.families.registry import family_of

__all__ = [
    "LayerTargets",
    "MoeFamily",
    "MoeLayer",
    "expert_bytes",
    "expert_parameters",
    "family_of",
    "find_moe_layers",
    "gate_matrix",
    "is_of_other_modality",
    "lora_targets",
    "target_names",
]
