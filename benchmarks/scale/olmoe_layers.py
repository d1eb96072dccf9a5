"""A random model of OLMoE's layer shape, in bfloat16, with two layers."""

from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from dwellmoe.loading import quiet

VOCABULARY = 50304


def make_model(layers: int = 2) -> Any:
    """Hidden 2048, intermediate 1024, 64 experts, 8 a token; normal weights of deviation 0.02."""
    quiet()
    torch.manual_seed(0)
    config = AutoConfig.for_model(
        "olmoe",
        vocab_size=VOCABULARY,
        hidden_size=2048,
        intermediate_size=1024,
        num_hidden_layers=layers,
        num_attention_heads=16,
        num_key_value_heads=16,
        num_experts=64,
        num_experts_per_tok=8,
    )
    return AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
