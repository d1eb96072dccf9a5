"""A dense Llama of the kind that the build starts from, small and random, and text for it."""

from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from moe_activations import DenseStream
from moe_split import MoeShape


@pytest.fixture(scope="session")
def dense() -> Any:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        max_position_embeddings=64,
        tie_word_embeddings=True,
        initializer_range=0.3,
    )
    return LlamaForCausalLM(config).eval()


@pytest.fixture(scope="session")
def shape() -> MoeShape:
    return MoeShape(num_experts=8, top_k=2, shared_neurons=16)


@pytest.fixture(scope="session")
def rows() -> torch.Tensor:
    return torch.randint(64, (24, 32), generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="session")
def activations(dense, rows) -> tuple[torch.Tensor, torch.Tensor]:
    """What the first block reads and gives."""
    return DenseStream.begin(dense, rows).advance()
