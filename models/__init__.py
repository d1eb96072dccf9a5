"""The MoE models: where their routers and experts sit, and the architecture transformers lacks."""

import models.deepseek_moe  # noqa: F401 - registers the architecture
from models.base import MoeFamily, MoeLayer
from models.discovery import find_moe_layers
from models.expert_size import expert_bytes
from models.gate_matrix import gate_matrix
from models.lora_targets import LayerTargets, layer_targets, lora_targets, target_names
from models.registry import family_of

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
