"""How a question becomes a prompt, and what of that is kept with an adapter."""

import dataclasses
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dwellmoe.data.examples import Example
from dwellmoe.data.task import Task, load_task
from dwellmoe.data.tokenised import tokenise_split
from dwellmoe.data.wording import (
    WORDING_FILE,
    Wording,
    as_asked,
    as_message,
    as_messages,
    difference,
    saved_wording,
    wording_of,
)
from dwellmoe.errors import UserError
from tests.data.stand_ins import TASK, word_tokenizer, words, write_task

TEMPLATE = "<bos>{% for m in messages %}w90 {{ m['content'] }} w91{% endfor %}"
CHAT = Task("t", None, (), prompt="p ", answer=" a", chat=True, chat_answer="b", stop=("x",))  # type: ignore[arg-type]
PLAIN = dataclasses.replace(CHAT, chat=False)


def tokenizer_with(template, with_bos=False):
    tokenizer = word_tokenizer(with_bos)
    tokenizer.chat_template = template
    return tokenizer


@pytest.mark.parametrize(
    ("task", "choice", "template", "trained", "expected"),
    [
        (CHAT, "auto", TEMPLATE, None, True),
        (CHAT, "auto", None, None, False),
        (CHAT, "off", TEMPLATE, None, False),
        (PLAIN, "auto", TEMPLATE, None, False),
        (PLAIN, "on", TEMPLATE, None, True),
        (CHAT, "auto", TEMPLATE, Wording("t"), False),
        (PLAIN, "auto", TEMPLATE, Wording("t", chat_template=True), True),
        (CHAT, "on", TEMPLATE, Wording("t"), True),
    ],
)
def test_option_then_adapter_then_task_decide(task, choice, template, trained, expected):
    asked = as_asked(task, tokenizer_with(template), choice, trained)
    assert asked.chat == expected
    assert (asked.prompt, asked.answer, asked.stop) == (("p", "b", ()) if expected else ("p ", " a", ("x",)))


def test_a_mix_is_asked_in_one_manner_and_says_so(tmp_path, capsys):
    for name, chat in (("plain", ""), ("chat", "chat = true")):
        (tmp_path / name).mkdir()
        write_task(tmp_path / name, chat + TASK)
    members = {str(tmp_path / name / "task.toml"): 1.0 for name in ("plain", "chat")}
    mix = Task("m", tmp_path, (), mix=members)
    assert not as_asked(mix, tokenizer_with(TEMPLATE)).chat
    said = capsys.readouterr().err
    assert str(tmp_path / "chat") in said and str(tmp_path / "plain") not in said


def test_a_template_that_is_not_there_is_refused():
    with pytest.raises(UserError, match="--use_chat_template on"):
        as_asked(PLAIN, word_tokenizer(), "on")


def test_a_message_has_one_bos():
    assert as_message("w1", tokenizer_with(TEMPLATE, with_bos=True)) == "w90 w1 w91"
    assert as_message("w1", tokenizer_with(TEMPLATE)) == "<bos>w90 w1 w91"


def test_running_text_is_no_message():
    examples = [Example("w1", "w2", {}), Example("", "w3", {})]
    assert [e.prompt for e in as_messages(examples, tokenizer_with(TEMPLATE, True))] == ["w90 w1 w91", ""]


def test_a_template_that_refuses_a_message_is_one_line():
    with pytest.raises(UserError, match="chat template"):
        as_message("w1", tokenizer_with("{{ raise_exception('no user') }}"))


def test_training_rows_are_in_the_chat_template(tmp_path, monkeypatch):
    monkeypatch.setenv("DWELLMOE_CACHE", str(tmp_path / "cache"))
    rows = [{"question": words(n, 2), "reply": words(n + 10, 2)} for n in range(3)]
    task = load_task(str(write_task(tmp_path, "chat = true" + TASK, a=rows, b=rows, c=rows)))
    tokenizer = tokenizer_with(TEMPLATE, with_bos=True)
    plain, chat = (
        tokenise_split(as_asked(task, tokenizer, choice), "train", tokenizer, 32)
        for choice in ("off", "auto")
    )
    assert tokenizer.decode(plain[0]["input_ids"]) == "<bos> w0 w1 w10 w11 <eos>"
    assert tokenizer.decode(chat[0]["input_ids"]) == "<bos> w90 w0 w1 w91 w10 w11 <eos>"
    tokenizer.chat_template = TEMPLATE.replace("w91", "w92")
    other = tokenise_split(as_asked(task, tokenizer), "train", tokenizer, 32)
    assert "w92" in tokenizer.decode(other[0]["input_ids"]), "another template is another data set"


@given(
    st.builds(Wording, task=st.text(), prompt=st.text(), answer=st.text(), chat_template=st.booleans()),
)
def test_a_wording_reads_back_as_written(tmp_path_factory, wording):
    folder = tmp_path_factory.mktemp("adapter")
    wording.save(folder)
    assert saved_wording(folder) == wording


WRONG = (
    '{"task": 1, "prompt": "", "answer": "", "chat_template": true}',
    '{"task": "", "prompt": "", "answer": "", "chat_template": "yes"}',
)


@pytest.mark.parametrize("text", ["", "[]", "null", "{}", '"x"', "[" * 100_000, "\x00", *WRONG])
def test_a_damaged_wording_is_named(tmp_path, text):
    (tmp_path / WORDING_FILE).write_text(text)
    with pytest.raises(UserError, match=WORDING_FILE):
        saved_wording(tmp_path)


def test_older_adapters_have_no_wording(tmp_path):
    assert saved_wording(tmp_path) is None and saved_wording(None) is None


def test_a_question_is_worded():
    assert Wording("t", "Q: {question}\nA:").prompt_of("{x}?") == "Q: {x}?\nA:"
    assert Wording().prompt_of("as it is {x}") == "as it is {x}"
    several = Wording("t", "{story}\n{options}")
    asked = several.prompt_of(json.dumps({"story": "s", "choices": ["a", "b"]}))
    assert asked == "s\nA. a\nB. b"
    for lacking in ("text", "[1]", '{"story": "s"}'):
        with pytest.raises(UserError, match="options"):
            several.prompt_of(lacking)


def test_only_differences_are_said():
    trained = wording_of(PLAIN)
    assert difference(trained, trained) == ""
    assert "--use_chat_template" in difference(trained, dataclasses.replace(trained, chat_template=True))
    assert "'p '" in difference(trained, dataclasses.replace(trained, prompt="q"))
