"""Truncation keeps answers whole, nothing is lost silently, the cache is hit exactly when it may be."""

import json
import multiprocessing

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dwellmoe.data.examples import Example
from dwellmoe.data.task import load_task
from dwellmoe.data.tokenised import CutCounts, cut_counts, encode_examples, tokenise_split
from dwellmoe.errors import UserError
from tests.data.stand_ins import word_tokenizer, words, write_task

EOS = 1


def first_row(prompt: str, answer: str, max_tokens: int, with_bos: bool = False) -> dict:
    return encode_examples([Example(prompt, answer, {})], word_tokenizer(with_bos), max_tokens).to_list()[0]


def test_prompt_is_masked_and_answer_ends_with_eos():
    row = first_row(words(0, 3), words(10, 2), 99)
    assert row["input_ids"] == [4, 5, 6, 14, 15, EOS]
    assert row["labels"] == [-100, -100, -100, 14, 15, EOS]
    assert row["prompt_tokens"] == 3


def test_bos_is_put_once_and_masked():
    row = first_row(words(0, 1), words(10, 1), 99, with_bos=True)
    assert row["input_ids"] == [0, 4, 14, EOS]
    assert row["labels"] == [-100, -100, 14, EOS]


def test_long_prompt_loses_its_beginning_and_keeps_bos():
    row = first_row(words(0, 9), words(20, 2), 6, with_bos=True)
    assert row["input_ids"] == [0, 11, 12, 24, 25, EOS]
    assert row["cut_prompt_tokens"] == 7 and row["cut_answer_tokens"] == 0


def test_answer_too_long_alone_is_cut_at_its_end_and_counted():
    row = first_row(words(0, 3), words(20, 9), 5)
    assert row["input_ids"] == [24, 25, 26, 27, 28]
    assert row["prompt_tokens"] == 0 and row["cut_prompt_tokens"] == 3 and row["cut_answer_tokens"] == 5


def test_running_text_is_cut_into_windows_and_loses_nothing():
    rows = encode_examples([Example("", words(0, 10), {})], word_tokenizer(with_bos=True), 5)
    assert [token for row in rows.to_list() for token in row["input_ids"][1:]] == [*range(4, 14), EOS]
    assert all(len(row["input_ids"]) <= 5 and row["labels"][0] == -100 for row in rows.to_list())
    assert cut_counts(rows) == CutCounts(rows=3, cut_prompts=0, cut_answers=0)


@given(st.integers(1, 40), st.integers(2, 9), st.booleans())
def test_every_window_predicts_something_and_all_text_is_predicted_once(count, max_tokens, with_bos):
    rows = encode_examples([Example("", words(0, count), {})], word_tokenizer(with_bos), max_tokens).to_list()
    text = [*range(4, 4 + count), EOS]
    predicted = [label for row in rows for label in row["labels"] if label != -100]
    firsts = [row["input_ids"][0] for row in rows]
    assert all(any(label != -100 for label in row["labels"]) for row in rows)
    if with_bos:
        assert predicted == text
    else:  # a window's first token is not predicted, one that repeats the window before is already there
        assert [token for token in text if token not in predicted and token not in firsts] == []
        assert len(predicted) == len({*predicted})


def test_a_text_of_one_token_is_left_out_and_that_is_said(capsys):
    assert len(encode_examples([Example("", "", {})] * 3, word_tokenizer(), 8)) == 0
    assert "3 empty texts" in capsys.readouterr().err


def test_the_first_token_is_never_a_label():
    assert first_row("", words(0, 3), 99)["labels"] == [-100, 5, 6, EOS]


def test_counts_are_reported_once(own_task, tokenizer, capsys):
    for _ in range(2):
        rows = tokenise_split(load_task(str(own_task)), "train", tokenizer, 6)
    assert cut_counts(rows) == CutCounts(rows=4, cut_prompts=2, cut_answers=0)
    assert capsys.readouterr().err.count("2 prompts cut at their beginning, 0 answers cut") == 1


def test_other_ranks_are_silent(own_task, tokenizer, capsys, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    tokenise_split(load_task(str(own_task)), "train", tokenizer, 6)
    assert "cut" not in capsys.readouterr().err


def cached_names(tmp_path) -> set[str]:
    return {path.name for path in (tmp_path / "cache" / "tokenised").iterdir() if path.is_dir()}


def test_same_request_is_served_from_the_cache(own_task, tokenizer, tmp_path, monkeypatch):
    first = tokenise_split(load_task(str(own_task)), "train", tokenizer, 32)
    monkeypatch.setattr("dwellmoe.data.tokenised.load_examples", None)
    tokenizer.padding_side = "left"
    assert tokenise_split(load_task(str(own_task)), "train", tokenizer, 32).to_list() == first.to_list()
    assert len(cached_names(tmp_path)) == 1


@pytest.mark.parametrize("change", ["prompt", "data", "earlier data", "tokenizer", "max_tokens", "limit"])
def test_any_change_makes_a_new_entry(change, own_task, tokenizer, tmp_path):
    tokenise_split(load_task(str(own_task)), "test", tokenizer, 32)
    more = json.dumps({"question": "w1", "reply": "w2"}) + "\n"
    if change == "prompt":
        own_task.write_text(own_task.read_text().replace('"{question}"', '"w9 {question}"'))
    elif change in ("data", "earlier data"):
        file = tmp_path / ("c.jsonl" if change == "data" else "a.jsonl")
        file.write_text(file.read_text() + more)
    tokenise_split(
        load_task(str(own_task)),
        "test",
        word_tokenizer(with_bos=True) if change == "tokenizer" else tokenizer,
        16 if change == "max_tokens" else 32,
        limit=1 if change == "limit" else None,
    )
    assert len(cached_names(tmp_path)) == 2


def test_limit_is_a_sample_by_seed(own_task, tokenizer):
    task = load_task(str(own_task))
    draws = [tokenise_split(task, "train", tokenizer, 32, limit=2, seed=seed).to_list() for seed in range(5)]
    assert all(len(draw) == 2 for draw in draws)
    assert draws[0] == tokenise_split(task, "train", tokenizer, 32, limit=2, seed=0).to_list()
    assert any(draw != draws[0] for draw in draws)


def _tokenise_in_a_rank(path: str, lengths) -> None:
    lengths.put(len(tokenise_split(load_task(path), "train", word_tokenizer(), 32)))


def test_ranks_that_start_at_once_share_one_entry(own_task, tmp_path):
    context = multiprocessing.get_context("fork")
    lengths = context.Queue()
    ranks = [context.Process(target=_tokenise_in_a_rank, args=(str(own_task), lengths)) for _ in range(3)]
    for rank in ranks:
        rank.start()
    assert [lengths.get(timeout=60) for _ in ranks] == [4, 4, 4]
    assert len(cached_names(tmp_path)) == 1


def test_a_broken_build_leaves_nothing_behind(tmp_path, tokenizer):
    path = write_task(tmp_path, a=[{"question": "w1"}], b=[], c=[])
    with pytest.raises(UserError, match="'reply' is missing"):
        tokenise_split(load_task(str(path)), "train", tokenizer, 32)
    assert cached_names(tmp_path) == set()


@pytest.mark.parametrize(("max_tokens", "limit"), [(1, None), (0, None), (8, 0), (8, -3)])
def test_impossible_sizes_are_refused(max_tokens, limit, own_task, tokenizer):
    with pytest.raises(UserError, match="at least"):
        tokenise_split(load_task(str(own_task)), "train", tokenizer, max_tokens, limit=limit)
