"""A chat with several messages is an example: what comes before its last answer is asked, that answer is
learned.
"""

import json

import pytest

from dwellmoe.data.examples import load_examples
from dwellmoe.data.task import load_task
from dwellmoe.data.wording import as_asked, as_messages, wording_of
from dwellmoe.errors import UserError
from tests.data.stand_ins import word_tokenizer, write_task

TASK = """
prompt = "{conversation}"
answer = " {reply}"
fields = ["messages"]
form = "free_text"
metric = "rouge"
[[source]]
kind = "file"
files = { train = "a.jsonl", validation = "b.jsonl" }
"""
MESSAGES = [
    {"role": role, "content": text}
    for role, text in (
        ("system", "w0"),
        ("user", "w1"),
        ("assistant", "w2"),
        ("user", "w3"),
        ("assistant", "w4"),
    )
]
TEMPLATE = "{% for m in messages %}[{{ m['role'] }}] {{ m['content'] }} {% endfor %}[reply]"


def examples_of(tmp_path, messages):
    task = load_task(str(write_task(tmp_path, TASK, a=[{"messages": messages}])))
    return task, load_examples(task, "train")


@pytest.mark.parametrize("messages", [MESSAGES, json.dumps(MESSAGES)], ids=["list", "text"])
def test_the_last_answer_is_the_reply_to_all_before(messages, tmp_path):
    task, (example,) = examples_of(tmp_path, messages)
    assert example.prompt == "System: w0\nUser: w1\nAssistant: w2\nUser: w3\nAssistant:"
    assert example.answer == " w4"
    assert wording_of(task).prompt_of("w1") == "User: w1\nAssistant:"


def test_a_chat_template_keeps_the_roles(tmp_path):
    tokenizer = word_tokenizer()
    tokenizer.chat_template = TEMPLATE
    task = as_asked(examples_of(tmp_path, MESSAGES)[0], tokenizer, "on")
    (example,) = as_messages(load_examples(task, "train"), tokenizer)
    assert example.prompt == "[system] w0 [user] w1 [assistant] w2 [user] w3 [reply]"
    assert example.answer == "w4"
    assert wording_of(task).prompt_of("w1") == "w1"


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        (MESSAGES[:4], "ends with an answer of the assistant, found .*'user'"),
        (MESSAGES[2:3], "ends with an answer of the assistant"),
        ([], r"ends with an answer of the assistant, found \[\]"),
        ("hello", "ends with an answer of the assistant, found 'hello'"),
        ([{"from": "human", "value": "w1"}, {"from": "gpt", "value": "w2"}], "the texts role and content"),
        (
            [{"role": "user", "content": [{"type": "text", "text": "w"}]}, MESSAGES[-1]],
            "the texts role and content",
        ),
        (["w1", "w2"], "the texts role and content, found 'w1'"),
    ],
)
def test_what_is_no_chat_is_refused_with_its_place(messages, message, tmp_path):
    with pytest.raises(UserError, match=rf"a\.jsonl:1: .*{message}"):
        examples_of(tmp_path, messages)


def test_a_list_in_a_wording_is_told_what_to_write(tmp_path):
    path = write_task(tmp_path, TASK.replace("{conversation}", "{messages}"))
    with pytest.raises(
        UserError, match=r"'prompt' has {messages}, which is a list: write {conversation}, {reply}"
    ):
        load_task(str(path))
