"""Which models keep the packed requests of a row apart."""

import pytest
import torch

from dwellmoe.families.packing import mixes_packed_requests
from tests.tiny_models import tiny_model


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    "family, mixed",
    [("olmoe", False), ("deepseek_v3", False), ("gpt_oss", True), ("qwen3_5_moe_text", True)],
)
def test_requests_that_see_one_another_are_found(family, mixed, dtype):
    model = tiny_model(family).to(dtype).train()
    assert mixes_packed_requests(model) is mixed
    assert model.training
