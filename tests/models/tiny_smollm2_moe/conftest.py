"""A small dense Llama, how to split it, and random text for it."""

from typing import Any

import pytest
import torch

from moe_activations import TwinStream
from moe_split import MoeShape, new_moe
from tests.models.tiny_smollm2_moe.tiny_llama import tiny_llama


@pytest.fixture(scope="session")
def dense() -> Any:
    return tiny_llama()


@pytest.fixture(scope="session")
def shape() -> MoeShape:
    return MoeShape(num_experts=8, top_k=2, shared_neurons=16)


@pytest.fixture(scope="session")
def rows() -> torch.Tensor:
    return torch.randint(64, (24, 32), generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="session")
def activations(dense, shape, rows) -> list[torch.Tensor]:
    """What the first block reads and ought to give."""
    task: list[torch.Tensor] = []
    TwinStream.begin(dense, new_moe(dense, shape), rows).advance(lambda *pair: task.extend(pair))
    return task
