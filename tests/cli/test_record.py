"""`dwellmoe record`: what it records, which is what `dwellmoe.record` does, and what it refuses."""

import numpy as np
import pytest

import dwellmoe as dm
from dwellmoe.cache.trace import DECODE, PREFILL, RoutingTrace
from dwellmoe.cli import record as command
from dwellmoe.errors import UserError
from tests.data.stand_ins import words

TEXT = words(0, 30)


@pytest.fixture
def text(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text(TEXT)
    return path


def run(checkpoint, out, *options):
    command.run([str(word) for word in ("--model", checkpoint, "--out", out, *options)])
    return RoutingTrace.load(out)


def test_a_text_is_recorded_as_the_library_records_it(tiny_checkpoint, text, tmp_path, capsys):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    trace = run(tiny_checkpoint, tmp_path / "t.safetensors", "--text", text, "--gate_probs")
    model = AutoModelForCausalLM.from_pretrained(tiny_checkpoint)
    ours = dm.record(model, AutoTokenizer.from_pretrained(tiny_checkpoint), [TEXT])
    assert np.array_equal(trace.experts, ours.experts) and np.array_equal(trace.phase, ours.phase)
    assert trace.gate_probs is not None and trace.model == tiny_checkpoint.name
    assert "30 decode tokens" in capsys.readouterr().out


def test_a_long_text_becomes_requests_and_lines_are_texts(tiny_checkpoint, text, tmp_path):
    trace = run(tiny_checkpoint, tmp_path / "t.safetensors", "--text", text, "--max_tokens", 8)
    assert np.bincount(trace.request).tolist() == [8, 8, 8, 6]
    text.write_text(f"{words(0, 3)}\n\n{words(9, 5)}\n")
    trace = run(tiny_checkpoint, tmp_path / "t.safetensors", "--text", text, "--text_per", "line")
    assert np.bincount(trace.request).tolist() == [3, 5]


def test_generated_tokens_are_decode(tiny_checkpoint, text, tmp_path):
    trace = run(tiny_checkpoint, tmp_path / "t.safetensors", "--text", text, "--generate", 6)
    assert (trace.phase == PREFILL).sum() == 30 and 0 < (trace.phase == DECODE).sum() <= 5
    assert trace.source == "generated"


def test_an_engine_records_the_same(tiny_checkpoint, text, tmp_path):
    plain = run(tiny_checkpoint, tmp_path / "a.safetensors", "--text", text)
    cached = run(tiny_checkpoint, tmp_path / "b.safetensors", "--text", text, "--expert_budget", "50%")
    assert np.array_equal(plain.experts, cached.experts)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--text", "missing.txt"), "missing.txt"),
        (("--text", "empty.txt"), "no text"),
        (("--text", "bytes.txt"), "not UTF-8"),
        (("--text", "text.txt", "--generate", 4, "--gate_probs"), "--gate_probs"),
        (("--text", "text.txt", "--generate", 4, "--max_tokens", 9), "--max_tokens"),
        (("--text", "text.txt", "--generate", 1000), "context"),
        (("--text", "text.txt", "--lora_save_path", "nowhere"), "nowhere"),
        (("--text", "text.txt", "--expert_budget", "x"), "--expert_budget x"),
        (("--text", "text.txt", "--expert_format", "int5"), "int4"),
        (("--text", "text.txt", "--out", "t.bin"), "t.bin"),
        (("--text", "text.txt", "--out", "no/t.safetensors"), "no/t.safetensors"),
        (("--text", "text.txt", "--out", "text.txt"), "text.txt"),
    ],
)
def test_a_mistake_is_one_line_and_leaves_nothing(
    options, said, tiny_checkpoint, text, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty.txt").write_text(" \n")
    (tmp_path / "bytes.txt").write_bytes(b"\xff\xfe\x00")
    before = sorted(tmp_path.iterdir())
    with pytest.raises(UserError) as error:
        words_ = ["--model", tiny_checkpoint, *options]
        command.run(
            [str(word) for word in (words_ if "--out" in options else [*words_, "--out", "t.safetensors"])]
        )
    assert said in str(error.value) and "\n" not in str(error.value)
    assert sorted(tmp_path.iterdir()) == before
