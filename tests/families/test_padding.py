"""Padding changes the logits of those models that are said to depend on it, and of no others."""

import pytest
import torch

from dwellmoe.families.padding import depends_on_padding
from tests.tiny_models import FAMILIES, tiny_model

SPARSE = ("axk2", "deepseek_v32", "glm_moe_dsa", "hy_v4")
LONG, SHORT = 60, 37


@torch.no_grad()
@pytest.mark.parametrize("family", FAMILIES)
def test_a_request_beside_a_longer_one(family):
    model = tiny_model(family)
    rows_BT = torch.randint(3, 64, (2, LONG), generator=torch.Generator().manual_seed(1))
    mask_BT = torch.ones_like(rows_BT)
    rows_BT[1, SHORT:] = mask_BT[1, SHORT:] = 0
    alone = model(rows_BT[1:, :SHORT], use_cache=False).logits[0]
    padded = model(rows_BT, attention_mask=mask_BT, use_cache=False).logits[1, :SHORT]
    same = torch.allclose(alone, padded, atol=1e-5)
    assert same != (family in SPARSE)
    assert depends_on_padding(model) or same
