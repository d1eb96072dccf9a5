"""Metrics load without the hub and give what a pocket calculator gives."""

import math
import socket
import unicodedata
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rouge_score.tokenizers import DefaultTokenizer

from dwellmoe.errors import UserError
from dwellmoe.evaluation.metrics import METRICS, load_metric
from dwellmoe.evaluation.metrics.rouge import Words


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("a metric must not ask the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)


@pytest.mark.parametrize("name", METRICS.names())
def test_every_metric_loads_offline(name):
    assert load_metric(name).name == name


def test_accuracy_counts_no_answer_as_wrong_and_apart():
    written, references = [" 1", "2", "who knows", "2"], [" 1", " 1", " 1", " 2"]
    row = load_metric("accuracy").compute(predictions=written, references=references, form="option_number")
    assert row is not None and row["accuracy"] == 0.5 and row["no_answer"] == 0.25
    for name in ("accuracy", "no_answer"):
        low, high = row[f"{name}_ci95"]
        assert 0 <= low < row[name] < high <= 1


def test_accuracy_uses_the_choices_of_each_request():
    choices = [["w"] * 2, ["w"] * 4]
    row = load_metric("accuracy").compute(
        predictions=["3", "3"], references=["1", "3"], form="option_number", choices=choices
    )
    assert row is not None and row["accuracy"] == 0.5 and row["no_answer"] == 0.5


def test_rouge_of_a_hand_made_pair():
    row = load_metric("rouge").compute(predictions=["the cat sat"], references=["the cat sat down"])
    assert row is not None
    assert row["rouge_1"] == pytest.approx(6 / 7)
    assert row["rouge_2"] == pytest.approx(4 / 5)
    assert row["rouge_l"] == pytest.approx(6 / 7)
    assert row["rouge_l_ci95"] is None


@pytest.mark.parametrize(
    "text",
    [
        "\u4eca\u5929\u5929\u6c14\u597d",
        "Привет, как дела?",
        "d\u00e9j\u00e0 l'\u00e9t\u00e9",
        "नमस्ते दुनिया",
        "مرحبا بالعالم",
        "สวัสดี",
        "\U0001f600 \U0001f44d\U0001f3fd",
        "2 + 2",
        "\u2192 ...",
        "+++",
        "\u2460",
    ],
)
def test_rouge_of_a_text_with_itself_is_one(text):
    decomposed = unicodedata.normalize("NFD", text)
    row = load_metric("rouge").compute(predictions=[text], references=[decomposed])
    assert row is not None and row["rouge_1"] == row["rouge_l"] == 1
    assert row["rouge_2"] == (len(Words().tokenize(text)) > 1)


@pytest.mark.parametrize(
    "written, reference", [("\U0001f600", "\U0001f622"), ("???", "yes"), ("", "\U0001f600")]
)
def test_rouge_of_texts_that_share_nothing_is_zero(written, reference):
    row = load_metric("rouge").compute(predictions=[written], references=[reference])
    assert row is not None and row["rouge_1"] == row["rouge_2"] == row["rouge_l"] == 0


def f1(shared, written, reference):
    return 2 * shared / (written + reference) if shared else 0.0


def shared_runs(written, reference, length):
    """F1 of the runs of `length` words, each counted as often as both have it."""
    runs = [
        Counter(zip(*(words[start:] for start in range(length)), strict=False))
        for words in (written, reference)
    ]
    return f1((runs[0] & runs[1]).total(), *(run.total() for run in runs))


def longest_shared_sequence(written, reference):
    if not written or not reference:
        return 0
    if written[-1] == reference[-1]:
        return 1 + longest_shared_sequence(written[:-1], reference[:-1])
    return max(
        longest_shared_sequence(written[:-1], reference), longest_shared_sequence(written, reference[:-1])
    )


SOME_WORDS = st.sampled_from(
    ["\u5929", "\u6c14", "\u043a\u0430\u043a", "d\u00e9j\u00e0", "नमस्ते", "مرحبا", "cat", "7"]
)


@given(st.lists(SOME_WORDS, min_size=1, max_size=5), st.lists(SOME_WORDS, min_size=1, max_size=5))
def test_rouge_is_what_a_count_by_hand_gives(written, reference):
    row = load_metric("rouge").compute(predictions=[" ".join(written)], references=[" ".join(reference)])
    assert row is not None
    assert row["rouge_1"] == pytest.approx(shared_runs(written, reference, 1))
    assert row["rouge_2"] == pytest.approx(shared_runs(written, reference, 2))
    longest = longest_shared_sequence(written, reference)
    assert row["rouge_l"] == pytest.approx(f1(longest, len(written), len(reference)))


def test_rouge_takes_chinese_by_character_and_leaves_reasoning_out():
    row = load_metric("rouge").compute(
        predictions=["<think>\u597d</think>\u5929\u6c14\u4e0d\u597d"], references=["\u5929\u6c14\u5f88\u597d"]
    )
    assert row is not None and row["rouge_1"] == pytest.approx(3 / 4)


@given(st.text(st.characters(max_codepoint=127)))
def test_english_words_are_those_of_rouge_score(text):
    theirs = DefaultTokenizer(use_stemmer=True).tokenize(text)
    assert Words().tokenize(text) == (theirs or [sign for sign in text if sign.isprintable() and sign != " "])


def test_half_a_surrogate_pair_ends_no_metric():
    row = load_metric("rouge").compute(predictions=["\ud83d cat"], references=["cat"])
    assert row is not None and row["rouge_1"] == 1


def test_perplexity_weighs_tokens_not_requests():
    row = load_metric("perplexity").compute(nll=[3.0, 1.0], tokens=[1, 7])
    assert row is not None and row["perplexity"] == pytest.approx(math.exp(4 / 8))
    low, high = row["perplexity_ci95"]
    assert math.exp(1 / 7) == pytest.approx(low) and math.exp(3) == pytest.approx(high)


def test_an_interval_takes_as_many_resamples_as_asked_for():
    values = {"nll": [3.0, 1.0, 2.0], "tokens": [1, 7, 2]}
    few, many = (load_metric("perplexity").compute(**values, resamples=number) for number in (1, 500))
    assert few and few["perplexity_ci95"][0] == few["perplexity_ci95"][1]
    assert many and many["perplexity_ci95"][0] < many["perplexity_ci95"][1]


def test_perplexity_beyond_floats_is_infinite():
    row = load_metric("perplexity").compute(nll=[1e6, 1e6], tokens=[1, 1])
    assert row is not None and row["perplexity"] == math.inf


def test_an_unknown_metric_lists_the_known_ones():
    with pytest.raises(UserError, match="'bleu': choose from accuracy, pass_at_1, perplexity, rouge"):
        load_metric("bleu")
