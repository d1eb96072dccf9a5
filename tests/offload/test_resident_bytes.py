"""What a checkpoint's headers tell of the weights beside the experts is what a loaded model takes."""

from typing import Any

import pytest
import torch

from dwellmoe.errors import UserError
from dwellmoe.evaluation.evaluated_model import EvaluatedModel
from dwellmoe.families import find_moe_layers
from dwellmoe.loading import load_model
from dwellmoe.offload import EngineSettings, load_with_cache
from dwellmoe.offload.budgets import EngineSizes
from dwellmoe.offload.resident_bytes import resident_bytes_of
from dwellmoe.settings.model import ModelSettings
from tests.experts.low_bit_checkpoints import fp8_checkpoint, mxfp4_checkpoint
from tests.offload.workbench import checkpoint

CHECKPOINTS: dict[str, Any] = {
    "bfloat16": lambda: checkpoint("olmoe", torch.bfloat16),
    "mxfp4": mxfp4_checkpoint,
    "fp8": lambda: fp8_checkpoint("deepseek_v3"),
}


def _sizes_and_resident(model) -> tuple[EngineSizes, int]:
    """The experts as a trace of the model states them, and what else is in memory."""
    layers = find_moe_layers(model)
    found: Any = EvaluatedModel(model, None, layers, "")
    first = layers[0]
    sizes = EngineSizes(len(layers), first.num_experts, first.top_k, found.expert_bytes, 0)
    return sizes, found.resident_bytes


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize("name", CHECKPOINTS)
def test_of_a_model_in_memory(name, dtype):
    """In 16 or 32 bits."""
    sizes, resident = _sizes_and_resident(load_model(ModelSettings(str(CHECKPOINTS[name]()), dtype=dtype)))
    assert resident_bytes_of(str(CHECKPOINTS[name]()), sizes) == pytest.approx(resident, rel=0.02)


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_of_a_model_whose_experts_are_in_a_cache(name):
    """As they are stored; all else is in 16 bits."""
    model, engine = load_with_cache(str(CHECKPOINTS[name]()), EngineSettings("2"))
    with engine:
        sizes, resident = _sizes_and_resident(model)
        assert sizes.expert_bytes == engine.record_bytes
    assert resident_bytes_of(str(CHECKPOINTS[name]()), sizes) == pytest.approx(resident, rel=0.02)


def test_experts_of_another_size_are_of_another_model():
    with pytest.raises(UserError, match="not the same model as the trace's"):
        resident_bytes_of(str(mxfp4_checkpoint()), EngineSizes(3, 8, 2, (12, 12, 12), 0))
