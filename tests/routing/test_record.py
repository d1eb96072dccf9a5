"""`record` against the evaluation's own recording and against texts that run alone."""

from pathlib import Path

import numpy as np
import pytest
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

from dwellmoe.cache.trace import DECODE, PREFILL
from dwellmoe.data.examples import Example
from dwellmoe.data.tokenised import encode_examples
from dwellmoe.errors import UserError
from dwellmoe.evaluation.evaluated_model import EvaluatedModel
from dwellmoe.evaluation.requests import Request
from dwellmoe.evaluation.teacher_forced import score_and_record
from dwellmoe.families import expert_bytes, find_moe_layers
from dwellmoe.offload import EngineSettings, load_with_cache
from dwellmoe.routing.record import record
from tests.data.stand_ins import WORDS, word_tokenizer, words
from tests.tiny_models import tiny_model

TEXTS = [words(0, 7), words(30, 2), words(50, 12), words(9, 5)]


@pytest.fixture(scope="module")
def model():
    return tiny_model("olmoe", vocab_size=len(WORDS), eos_token_id=1, pad_token_id=2)


def evaluated_trace(model, tokenizer, texts):
    """What `inference.py` records of running text; its end tokens, which it adds, are left out."""
    layers = find_moe_layers(model)
    rows = encode_examples([Example("", text, {}) for text in texts], tokenizer, 64)
    requests = [Request(i, dict(row), Example("", "", {}), False, []) for i, row in enumerate(rows)]
    trace = score_and_record(EvaluatedModel(model, tokenizer, layers, "tiny"), requests)[1].trace
    assert trace.token_ids is not None
    return trace.take(trace.token_ids != tokenizer.eos_token_id)


@pytest.mark.parametrize("with_bos", [False, True])
def test_it_equals_the_teacher_forced_recording_of_the_evaluation(model, with_bos):
    tokenizer = word_tokenizer(with_bos)
    found, expected = record(model, tokenizer, TEXTS), evaluated_trace(model, tokenizer, TEXTS)
    for name in ("experts", "phase", "request", "token_ids"):
        assert np.array_equal(getattr(found, name), getattr(expected, name)), name
    assert found.weights is not None and expected.weights is not None
    assert np.allclose(found.weights.astype(float), expected.weights.astype(float), atol=2e-3)
    assert (found.layer_ids, found.expert_bytes) == (expected.layer_ids, expected.expert_bytes)


def test_every_token_of_a_text_is_decoded_but_the_one_in_front(model):
    trace = record(model, word_tokenizer(with_bos=True), TEXTS)
    for request, text in enumerate(TEXTS):
        phase = trace.phase[trace.request == request].tolist()
        assert phase == [PREFILL] + [DECODE] * len(text.split())


def test_texts_together_read_like_each_alone(model):
    together = record(model, word_tokenizer(), TEXTS, batch_size=3, gate_probs=True)
    for request, text in enumerate(TEXTS):
        alone = record(model, word_tokenizer(), [text])
        assert np.array_equal(together.experts[together.request == request], alone.experts)
    assert together.gate_probs is not None
    assert together.gate_probs.shape == (together.steps, together.layers, together.num_experts)


def test_it_describes_the_model_and_leaves_it_as_it_was(model):
    model.train()
    trace = record(model, word_tokenizer(), TEXTS[:1])
    assert model.training
    model.eval()
    layers = find_moe_layers(model)
    assert trace.model == Path(model.config.name_or_path).name
    assert trace.source == "teacher_forced"
    assert trace.expert_bytes == tuple(expert_bytes(model, layer) for layer in layers)
    assert trace.layer_ids == tuple(layer.layer_id for layer in layers)
    assert not any(module._forward_hooks for module in model.modules())


def test_an_adapter_takes_part(model):
    wrapped = get_peft_model(
        tiny_model("olmoe", vocab_size=len(WORDS)),
        LoraConfig(target_modules=["q_proj"], init_lora_weights=False),
    )
    found, base = record(wrapped, word_tokenizer(), TEXTS), record(model, word_tokenizer(), TEXTS)
    assert found.experts.shape == base.experts.shape
    assert not np.array_equal(found.experts, base.experts)
    with wrapped.disable_adapter():
        assert np.array_equal(record(wrapped, word_tokenizer(), TEXTS).experts, base.experts)


def test_a_longer_text_is_cut(model):
    assert record(model, word_tokenizer(), TEXTS, max_tokens=4).steps == 4 + 2 + 4 + 4


@pytest.mark.parametrize("texts", [[], "w1 w2", ["w1", ""]])
def test_texts_without_tokens_are_refused(model, texts):
    with pytest.raises(UserError, match="record: texts"):
        record(model, word_tokenizer(), texts)


def test_experts_in_a_cache_are_recorded_alike(tiny_checkpoint):
    plain = AutoModelForCausalLM.from_pretrained(tiny_checkpoint)
    cached, engine = load_with_cache(str(tiny_checkpoint), EngineSettings(expert_budget="50%"), "auto", "cpu")
    try:
        found = record(cached, word_tokenizer(), TEXTS)
    finally:
        engine.close()
    expected = record(plain, word_tokenizer(), TEXTS)
    assert np.array_equal(found.experts, expected.experts)
    assert found.expert_bytes == expected.expert_bytes
