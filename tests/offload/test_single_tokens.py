"""A token by itself in bfloat16 on the CPU: compiled passes beside torch's, with the same results."""

from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from dwellmoe.experts.one_row_linear import OneRowLinear
from dwellmoe.offload.decode_attention import NAME
from tests.offload.workbench import checkpoint, engine_of, prompt, resident

FAMILIES = ["olmoe", "qwen2_moe", "mixtral", "deepseek_v2", "gpt_oss"]
STEPS = 6


def _logits(model: Any, ids: torch.Tensor) -> list[torch.Tensor]:
    """Of a prompt's last token and of further given tokens, one at a time."""
    with torch.no_grad():
        output = model(ids[:, :-STEPS], use_cache=True)
        found = [output.logits[:, -1]]
        for step in range(STEPS):
            token = ids[:, step - STEPS][:, None]
            output = model(token, past_key_values=output.past_key_values, use_cache=True)
            found.append(output.logits[:, -1])
    return found


@pytest.mark.parametrize("budget", ["100%", "50%"])
@pytest.mark.parametrize("family", FAMILIES)
def test_logits_are_those_of_transformers(family, budget):
    """Closer to float32 than transformers in bfloat16 is, or about as close."""
    ids = prompt(20)
    exact = _logits(resident(family), ids)
    usual = _logits(AutoModelForCausalLM.from_pretrained(checkpoint(family), dtype=torch.bfloat16), ids)
    model, engine = engine_of(family, dtype=torch.bfloat16, expert_budget=budget)
    with engine:
        assert any(isinstance(module, OneRowLinear) for module in model.modules())
        found = _logits(model, ids)

    def error(logits: list[torch.Tensor]) -> float:
        return float(sum((one.float() - other).norm() for one, other in zip(logits, exact, strict=True)))

    assert error(found) <= 1.3 * error(usual)


def test_attention_takes_the_pass_where_torchs_would_be_used():
    model, engine = engine_of("olmoe", dtype=torch.bfloat16)
    with engine:
        assert model.config._attn_implementation == NAME


def test_a_padded_batch_attends_like_its_rows():
    """Rows of different lengths bring a mask, which the pass leaves to torch."""
    model, engine = engine_of("olmoe", dtype=torch.bfloat16, expert_budget="100%")
    ids = prompt(9, rows=2)
    mask = torch.ones_like(ids)
    mask[1, :4] = 0
    options = {
        "max_new_tokens": 4,
        "do_sample": False,
        "output_logits": True,
        "return_dict_in_generate": True,
    }
    with engine:
        both = model.generate(ids, attention_mask=mask, **options).logits
        first = model.generate(ids[:1], attention_mask=mask[:1], **options).logits
    torch.testing.assert_close(both[0][:1], first[0], atol=0.02, rtol=0.02)
