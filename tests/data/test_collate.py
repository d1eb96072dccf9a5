"""A batch says where requests end, and a packed row gives the logits of its requests alone."""

import pytest
import torch
from transformers import OlmoeConfig, OlmoeForCausalLM

from dwellmoe.data.collate import PackingCollator, PaddingCollator, pack_examples

PAD = 2


def row(*ids: int, prompt_tokens: int = 1) -> dict:
    labels = [-100] * prompt_tokens + list(ids[prompt_tokens:])
    return {"input_ids": list(ids), "labels": labels, "prompt_tokens": prompt_tokens}


def test_padding_goes_to_the_longest_and_is_masked():
    batch = PaddingCollator(PAD)([row(5, 6, 7), row(8, 9)])
    assert batch["input_ids"].tolist() == [[5, 6, 7], [8, 9, PAD]]
    assert batch["labels"].tolist() == [[-100, 6, 7], [-100, 9, -100]]
    assert batch["attention_mask"].tolist() == batch["segment_ids"].tolist() == [[1, 1, 1], [1, 1, 0]]


def test_padding_rounds_up_to_the_multiple():
    assert PaddingCollator(PAD, multiple=8)([row(5, 6, 7)])["input_ids"].shape == (1, 8)


def test_packed_rows_restart_positions_and_number_requests():
    batch = PackingCollator(PAD, max_tokens=5)([row(5, 6), row(7, 8, 9), row(3, 4, prompt_tokens=0)])
    assert batch["input_ids"].tolist() == [[7, 8, 9, 5, 6], [3, 4, PAD, PAD, PAD]]
    assert batch["position_ids"].tolist() == [[0, 1, 2, 0, 1], [0, 1, 0, 1, 2]]
    assert batch["segment_ids"].tolist() == [[1, 1, 1, 2, 2], [1, 1, 0, 0, 0]]
    assert batch["labels"].tolist() == [[-100, 8, 9, -100, 6], [-100, 4, -100, -100, -100]]


def test_packing_keeps_every_row_and_the_limit():
    rows = [row(*range(3, 3 + length)) for length in (1, 9, 4, 7, 2, 2, 5, 10)]
    packs = pack_examples(rows, 10)
    assert sorted(len(r["input_ids"]) for pack in packs for r in pack) == [1, 2, 2, 4, 5, 7, 9, 10]
    assert all(sum(len(r["input_ids"]) for r in pack) <= 10 for pack in packs)
    assert len(packs) == 5


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("training", [True, False])
def test_a_packed_row_gives_the_logits_of_its_requests_alone(attention, training):
    torch.manual_seed(0)
    config = OlmoeConfig(
        vocab_size=50,
        hidden_size=32,
        intermediate_size=16,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=4,
        num_experts=8,
        num_experts_per_tok=2,
        pad_token_id=PAD,
    )
    model = OlmoeForCausalLM(config).train(training)
    model.set_attn_implementation(attention)
    rows = [row(5, 6, 7, 8), row(9, 10, 11), row(13, 14), row(12)]
    batch = PackingCollator(PAD, max_tokens=12)(rows)
    segments = batch.pop("segment_ids")
    with torch.no_grad():
        packed = model(**batch).logits
        for number, alone in enumerate(rows, start=1):
            expected = model(input_ids=torch.tensor([alone["input_ids"]])).logits[0]
            torch.testing.assert_close(packed[segments == number], expected, atol=1e-5, rtol=1e-4)


def test_without_the_cache_switch_requests_would_see_one_another():
    """The trap that `use_cache=False` is for; should transformers lift it, the switch may go."""
    torch.manual_seed(0)
    config = OlmoeConfig(
        vocab_size=50, hidden_size=32, intermediate_size=16, num_hidden_layers=2, num_experts=8
    )
    model = OlmoeForCausalLM(config).eval()
    batch = PackingCollator(PAD, max_tokens=12)([row(5, 6, 7, 8), row(9, 10, 11)])
    segments = batch.pop("segment_ids")
    with torch.no_grad():
        leaking = model(**batch | {"use_cache": True}).logits[segments == 2]
        separate = model(**batch).logits[segments == 2]
    assert (leaking - separate).abs().max() > 1e-3
