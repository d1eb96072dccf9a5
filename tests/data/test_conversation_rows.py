"""Every answer of a conversation is learned, and nothing else, whatever the chat template looks like."""

from collections import Counter
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dwellmoe.data.chat_turns import chat_of
from dwellmoe.data.collate import IGNORED_LABEL, PackingCollator
from dwellmoe.data.conversations import in_plain_words, in_template
from dwellmoe.data.examples import Example
from dwellmoe.data.task import load_task
from dwellmoe.data.tokenised import encode_examples, last_answer_row, tokenise_split
from dwellmoe.data.wording import as_asked, as_conversation, wording_of
from dwellmoe.errors import UserError
from tests.data import chats
from tests.data.chats import byte_tokenizer, turns, write_chats

TEXT = st.text(st.characters(exclude_categories=("Cs",)), min_size=1, max_size=12).filter(str.strip)
TALK = turns("hi", "a1", "and?", "a2")


def rows_of(chat, tokenizer, max_tokens=10_000):
    rendered = in_template(chat_of(chat, Counter()), tokenizer)
    return encode_examples([Example("", "", {}, rendered=rendered)], tokenizer, max_tokens).to_list()


def learned(row, tokenizer):
    """The texts of the runs of learned tokens."""
    runs, run = [], []
    for token, label in [*zip(row["input_ids"], row["labels"], strict=True), (0, IGNORED_LABEL)]:
        if label != IGNORED_LABEL:
            assert label == token
            run.append(token)
        elif run:
            runs.append(tokenizer.decode(run))
            run = []
    return runs


@given(
    st.sampled_from((chats.PLAIN, chats.MARKED, chats.TRIMMED)),
    st.none() | TEXT,
    st.lists(TEXT, min_size=2, max_size=6),
)
def test_the_learned_tokens_are_exactly_the_answers(template, system, texts):
    tokenizer = byte_tokenizer(template)
    texts = texts[: len(texts) // 2 * 2]
    before = [{"role": "system", "content": system}] if system else []
    (row,) = rows_of([*before, *turns(*texts)], tokenizer)
    answers = [text.strip() if template == chats.TRIMMED else text for text in texts[1::2]]
    assert learned(row, tokenizer) == [f"{answer}<|im_end|>" for answer in answers]


@given(st.lists(TEXT, min_size=2, max_size=6))
def test_in_plain_words_too(texts):
    tokenizer = byte_tokenizer(None)
    texts = texts[: len(texts) // 2 * 2]
    rendered = in_plain_words(chat_of(turns(*texts), Counter()))
    (row,) = encode_examples([Example("", "", {}, rendered=rendered)], tokenizer, 10_000).to_list()
    ends = ["\n"] * (len(texts) // 2 - 1) + ["<eos>"]
    assert learned(row, tokenizer) == [f" {a}{end}" for a, end in zip(texts[1::2], ends, strict=True)]


@pytest.mark.parametrize("template", [chats.PLAIN, chats.MARKED])
def test_tokens_are_those_of_the_whole_text_where_none_reaches_over_a_seam(template):
    tokenizer = byte_tokenizer(template)
    (row,) = rows_of(TALK, tokenizer)
    text = str(tokenizer.apply_chat_template(TALK, tokenize=False)).rstrip()
    assert row["input_ids"] == tokenizer(text, add_special_tokens=False)["input_ids"]
    (row,) = rows_of(turns("hi", "\na"), tokenizer)  # the line end of the template would merge with it
    assert learned(row, tokenizer) == ["\na<|im_end|>"]


def test_generation_marks_are_those_of_the_tokenizer():
    tokenizer = byte_tokenizer(chats.MARKED)
    (row,) = rows_of(TALK, tokenizer)
    found: Any = tokenizer.apply_chat_template(TALK, return_assistant_tokens_mask=True, return_dict=True)
    mask = [int(label != IGNORED_LABEL) for label in row["labels"]]
    assert found["assistant_masks"][: len(mask)] == mask


def test_a_last_turn_may_end_with_another_token():
    tokenizer = byte_tokenizer(chats.ENDS_OTHERWISE)
    (row,) = rows_of(TALK, tokenizer)
    assert learned(row, tokenizer) == ["a1", "a2<|return|>"]


def test_a_template_without_an_end_gets_the_end_token():
    tokenizer = byte_tokenizer(chats.NO_END)
    (row,) = rows_of(TALK, tokenizer)
    assert learned(row, tokenizer) == ["a1\n", "a2\n<eos>"]


@pytest.mark.parametrize(
    ("template", "chat", "turn"),
    [
        (chats.DROPS_REASONING, turns("q", "<think>t</think>a", "q", "a"), "turn 2"),
        (chats.SYSTEM_LAST, [{"role": "system", "content": "kind"}, *TALK], "turn 3"),
        (chats.NEWEST_FIRST, TALK, "turn 2"),
        (chats.USERS_ONLY, [*TALK, {"role": "tool", "content": "42"}, *turns("", "x")[1:]], "turn 5"),
        (chats.PLAIN + "{{ raise_exception('no such roles') }}", TALK, "no such roles"),
        (chats.MARKED.replace("'assistant' %}{% gen", "'no one' %}{% gen"), TALK, "marks 0"),
        (chats.MARKED.replace("in messages", "in messages | reverse"), turns("q", "r"), "turn 2"),
    ],
)
def test_turns_that_do_not_nest_are_refused(template, chat, turn):
    with pytest.raises(UserError, match=turn):
        rows_of(chat, byte_tokenizer(template))


def test_reasoning_that_is_kept_is_learned():
    tokenizer = byte_tokenizer(chats.DROPS_REASONING)
    (row,) = rows_of(turns("q", "<think>t</think>a"), tokenizer)
    assert learned(row, tokenizer) == ["<think>t</think>a<|im_end|>"]


def test_of_a_prompt_of_messages_no_answer_is_learned():
    tokenizer = byte_tokenizer(chats.MARKED)
    rendered = in_template(chat_of(TALK, Counter(), given=3), tokenizer)
    (row,) = encode_examples([Example("", "", {}, rendered=rendered)], tokenizer, 100).to_list()
    assert learned(row, tokenizer) == ["a2<|im_end|>"]


def test_what_is_too_long_loses_its_end_after_the_first_answer():
    tokenizer = byte_tokenizer(chats.PLAIN)
    (whole,) = rows_of(TALK, tokenizer)
    (row,) = rows_of(TALK, tokenizer, max_tokens=len(whole["input_ids"]) - 2)
    assert learned(row, tokenizer) == ["a1<|im_end|>", "a"]
    assert (row["cut_prompt_tokens"], row["cut_answer_tokens"]) == (0, 2)
    first = whole["prompt_tokens"]
    (row,) = rows_of(TALK, tokenizer, max_tokens=first)  # no room for the first answer with all its prompt
    assert learned(row, tokenizer) == ["a1<|im_end|>"]
    assert (row["cut_prompt_tokens"], row["cut_answer_tokens"]) == (3, 3)


@pytest.mark.parametrize("template", [chats.PLAIN, chats.MARKED])
def test_the_last_answer_is_measured_after_the_prompt_that_a_model_is_asked_with(template):
    tokenizer = byte_tokenizer(template)
    rendered = in_template(chat_of(TALK, Counter()), tokenizer)
    row, prompt = last_answer_row(rendered, tokenizer, 1000)
    assert learned(row, tokenizer) == ["a2<|im_end|>"]
    assert tokenizer.decode(prompt) == as_conversation(TALK[:-1], tokenizer)
    assert row["prompt_tokens"] == len(prompt)


def test_a_split_is_cached_by_content_and_counts_what_it_cuts(tmp_path, capsys):
    path = write_chats(tmp_path, *(turns(f"q{n}", f"a{n}", "more", f"b{n}") for n in range(20)))
    tokenizer = byte_tokenizer(chats.PLAIN)
    task = as_asked(load_task(path), tokenizer)
    rows = tokenise_split(task, "train", tokenizer, 48).to_list()
    assert len(rows) == 16 and all(len(learned(row, tokenizer)) == 1 for row in rows)
    assert "16 conversations cut at their end" in capsys.readouterr().err
    assert tokenise_split(task, "train", tokenizer, 48).to_list() == rows
    batch = PackingCollator(pad_token_id=0, max_tokens=200)(rows[:4])
    labels = [label for row in rows[:4] for label in row["labels"] if label != IGNORED_LABEL]
    assert sum((batch["labels"] != IGNORED_LABEL).flatten().tolist()) == len(labels)


def test_without_a_template_the_choices_are_named(tmp_path):
    task = load_task(write_chats(tmp_path, TALK))
    with pytest.raises(UserError, match=r"chat_template.*--use_chat_template off"):
        as_asked(task, byte_tokenizer(None))
    assert not as_asked(task, byte_tokenizer(None), "off").chat


def test_the_wording_of_an_adapter_is_that_of_the_template(tmp_path):
    tokenizer = byte_tokenizer(chats.PLAIN)
    wording = wording_of(as_asked(load_task(write_chats(tmp_path, TALK)), tokenizer))
    assert wording.chat_template and wording.of_conversations
    assert wording.prompt_of("hi") == "hi"
