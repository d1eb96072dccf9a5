"""Exported files in llama.cpp itself: `make test-llamacpp` builds it, and runs these tests alone.

Losses, tokens and chosen experts of a text are compared with those of transformers.
"""

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from llamacpp_files import HERE, convert, python_of, quantise, write_untied
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer
from workers import Process

from dwellmoe.cli.main import run
from dwellmoe.families import find_moe_layers

ROOT = Path(__file__).resolve().parents[2]
LLAMACPP = os.environ.get("LLAMACPP", "")
TOKENS = 512
MOST_DIFFERENCE = 0.005
"""Of the perplexity."""

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not LLAMACPP, reason="needs llama.cpp: make test-llamacpp builds it"),
]


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """tiny-olmoe with an output layer of its own."""
    return write_untied(ROOT / "models" / "tiny-olmoe", tmp_path_factory.mktemp("base") / "tiny-olmoe")


@pytest.fixture(scope="module")
def base_gguf(base, tmp_path_factory):
    return convert(base, tmp_path_factory.mktemp("gguf") / "base-f32.gguf", "f32", Path(LLAMACPP))


@pytest.fixture(scope="module")
def text():
    return (ROOT / "docs" / "concepts.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def tokens(base, text):
    return AutoTokenizer.from_pretrained(base)(text).input_ids[:TOKENS]


def run_llamacpp(path, do, *options, **request):
    """One answer of llama.cpp on a GGUF file."""
    command = [python_of(Path(LLAMACPP)), str(HERE / "llamacpp_worker.py"), str(path)]
    with Process([*command, "--context", str(TOKENS), *map(str, options)]) as worker:
        return worker.call(do, **request)


def load(base, adapter=None):
    """The model in transformers, with an adapter merged into it."""
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    return PeftModel.from_pretrained(model, adapter).merge_and_unload() if adapter else model


def losses_of(model, tokens):
    """[T - 1]: the negative log-likelihood of each token but the first."""
    ids = torch.tensor([tokens])
    with torch.no_grad():
        logits_TV = model(ids).logits[0, :-1]
    return torch.nn.functional.cross_entropy(logits_TV, ids[0, 1:], reduction="none").numpy()


def check_perplexity(found, expected):
    ratio = np.exp(np.mean(found) - np.mean(expected))
    assert abs(ratio - 1) <= MOST_DIFFERENCE
    # Nearly every token, and not the mean alone: two experts of nearly the same score may change places.
    assert np.quantile(np.abs(np.array(found) - expected), 0.98) < 0.05


def test_the_text_has_the_same_tokens(base, base_gguf, text):
    found = run_llamacpp(base_gguf, "tokenise", text=text[:2000])["tokens"]
    assert found == AutoTokenizer.from_pretrained(base)(text[:2000]).input_ids


def test_perplexity_of_the_base(base, base_gguf, tokens):
    found = run_llamacpp(base_gguf, "losses", tokens=tokens)["losses"]
    check_perplexity(found, losses_of(load(base), tokens))


@pytest.fixture(scope="module")
def tuned(base, base_gguf, make_adapter, tmp_path_factory):
    """An adapter of routers, and the GGUF that it was put into."""
    adapter = make_adapter(base)
    out = tmp_path_factory.mktemp("tuned") / "tuned-f32.gguf"
    export_routers(adapter, base_gguf, out)
    return adapter, out


def export_routers(adapter, base_gguf, out, *options):
    words = ["--adapter", str(adapter), "--base", str(base_gguf), "--out", str(out), *map(str, options)]
    run(["export", "gguf-routers", *words])


def test_perplexity_of_tuned_routers(base, base_gguf, tuned, tokens):
    adapter, out = tuned
    found = run_llamacpp(out, "losses", tokens=tokens)["losses"]
    check_perplexity(found, losses_of(load(base, adapter), tokens))
    assert abs(np.mean(found) - np.mean(losses_of(load(base), tokens))) > 0.01  # the adapter does something


def test_tuned_routers_choose_the_same_experts(base, tuned, tokens):
    adapter, out = tuned
    found = run_llamacpp(out, "routing", "--routing", tokens=tokens)["experts"]
    expected = chosen_experts(load(base, adapter), tokens)
    assert len(found) == len(expected)
    same = [
        set(one) == set(other)
        for layer, chosen in enumerate(expected)
        for one, other in zip(found[str(layer)], chosen, strict=True)
    ]
    assert np.mean(same) > 0.995  # two experts of nearly the same score may change places


def chosen_experts(model, tokens):
    """[L, T, K]"""
    chosen = []
    for layer in find_moe_layers(model):
        router = model.get_submodule(layer.router)
        router.register_forward_hook(lambda _module, _inputs, output: chosen.append(output[2].tolist()))
    with torch.no_grad():
        model(torch.tensor([tokens]))
    return chosen


def test_lora_of_attention_beside_tuned_routers(base, base_gguf, make_adapter, tokens, tmp_path):
    adapter = make_adapter(base, ["gate", "attention"])
    out, lora = tmp_path / "tuned.gguf", tmp_path / "attention.gguf"
    export_routers(adapter, base_gguf, out, "--lora_out", lora)
    found = run_llamacpp(out, "losses", "--lora", lora, tokens=tokens)["losses"]
    check_perplexity(found, losses_of(load(base, adapter), tokens))


@pytest.mark.parametrize("kind", ["Q8_0", "Q4_0"])
def test_routers_put_into_a_quantised_file_run(base, base_gguf, tuned, tokens, tmp_path, kind):
    adapter, _ = tuned
    quantised = quantise(base_gguf, tmp_path / f"base-{kind}.gguf", kind, Path(LLAMACPP))
    out = tmp_path / f"tuned-{kind}.gguf"
    export_routers(adapter, quantised, out)
    found = np.mean(run_llamacpp(out, "losses", tokens=tokens)["losses"])
    untuned = np.mean(run_llamacpp(quantised, "losses", tokens=tokens)["losses"])
    expected = np.mean(losses_of(load(base, adapter), tokens))
    assert abs(found - expected) < abs(untuned - expected)
