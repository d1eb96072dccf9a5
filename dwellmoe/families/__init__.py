"""The MoE models: where their routers and experts sit, and the architecture transformers lacks."""

import dwellmoe.families.deepseek_moe  # noqa: F401 - registers the architecture
from dwellmoe.families.base import MoeFamily, MoeLayer
from dwellmoe.families.discovery import find_moe_layers
from dwellmoe.families.expert_size import expert_bytes
from dwellmoe.families.gate_matrix import gate_matrix
from dwellmoe.families.lora_targets import LayerTargets, layer_targets, lora_targets, target_names
from dwellmoe.families.registry import family_of

__all__ = [
    "LayerTargets",
    "MoeFamily",
    "MoeLayer",
    "expert_bytes",
    "family_of",
    "find_moe_layers",
    "gate_matrix",
    "layer_targets",
    "lora_targets",
    "target_names",
]
