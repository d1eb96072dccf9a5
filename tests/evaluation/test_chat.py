"""Talking with a model without a terminal."""

import io

import pytest

from dwellmoe.data.wording import Wording
from dwellmoe.evaluation.chat import chat
from dwellmoe.evaluation.conversation import Conversation, Room
from tests.data.stand_ins import word_tokenizer

TEMPLATE = (
    "{% for m in messages %}{{ 'w90' if m['role'] == 'user' else 'w91' }} {{ m['content'] }} {% endfor %}w91"
)


def talk(evaluated, lines, room=None):
    out = io.StringIO()
    chat(evaluated, Conversation(evaluated.tokenizer, Wording(), room), 6, lines, out)
    return out.getvalue()


def test_each_reply_shows_what_it_cost(evaluated):
    output = talk(evaluated, ["w1 w2 w3\n", "\n", "w4 w5\n"])
    assert output.count("ECR 0.") == 2 and output.count("LRU hit rate 0.") == 2
    assert "chance 0.250" in output and "2 of 8 experts a layer, cold" in output


def test_ctrl_c_ends_it(evaluated):
    def lines():
        yield "w1\n"
        raise KeyboardInterrupt

    assert talk(evaluated, lines()).endswith("chat ended\n")


@pytest.mark.parametrize("bad", [b"w1 \xff\n", b"\xfe\xff\x00w\n", "w1 é\n".encode("latin-1")])
def test_a_line_that_is_not_utf_8_is_named_and_the_chat_goes_on(evaluated, bad):
    output = talk(evaluated, [b"\xef\xbb\xbfw1\r\n", bad, b"w4 w5\n"])
    offset = next(n for n, byte in enumerate(bad) if byte > 127)
    assert output.count("ECR 0.") == 2
    assert f"line 2 of the chat is not UTF-8: byte 0x{bad[offset]:02x} at offset {offset}" in output


def test_a_message_that_is_too_long_is_refused_and_the_oldest_are_left_out(evaluated):
    room = Room(8, "there is room for 8")
    output = talk(evaluated, ["w1 w2\n", "w3 " * 9 + "\n", "w4 w5 w6 w7 w8 w9\n"], room=room)
    assert "the message has 9 tokens, there is room for 8" in output and output.count("ECR 0.") == 2
    assert "the oldest 2 messages are left out: there is room for 8" in output


def conversation(**settings):
    tokenizer = word_tokenizer()
    tokenizer.chat_template = TEMPLATE
    return tokenizer, Conversation(tokenizer, **settings)


def test_a_conversation_is_in_the_chat_template():
    tokenizer, talk = conversation(wording=Wording("t", "w7 {question}", chat_template=True))
    talk.ask("w1")
    talk.add_reply(" w2 ")
    assert tokenizer.decode(talk.ask("w3").ids) == "w90 w7 w1 w91 w2 w90 w7 w3 w91"


def test_plain_words_of_a_task_are_asked_one_by_one_as_trained():
    tokenizer, talk = conversation(wording=Wording("t", "w7 {question} w8"))
    talk.ask("w1")
    talk.add_reply("w2")
    assert tokenizer.decode(talk.ask("w3").ids) == "w7 w3 w8" and talk.wording.one_by_one


@pytest.mark.parametrize("chat_template", [True, False])
def test_a_model_of_conversations_is_asked_whole_ones(chat_template):
    tokenizer, talk = conversation(wording=Wording("t", "{conversation}", chat_template=chat_template))
    talk.ask("w1")
    talk.add_reply("w2")
    text = talk._text([*talk.messages, "w3"])
    assert tokenizer("w1 w2 w3")["input_ids"] == [id for id in talk.ask("w3").ids if 4 <= id < 94]
    assert text == (
        "w90 w1 w91 w2 w90 w3 w91" if chat_template else "User: w1\nAssistant: w2\nUser: w3\nAssistant:"
    )


def test_a_message_without_a_reply_is_forgotten():
    tokenizer, talk = conversation(wording=Wording(chat_template=True))
    talk.ask("w1")
    assert tokenizer.decode(talk.ask("w3").ids) == "w90 w3 w91"


def test_a_message_that_lacks_fields_is_asked_as_it_is(capsys):
    tokenizer, talk = conversation(wording=Wording("t", "{a} w7 {b}"))
    assert tokenizer.decode(talk.ask("w1").ids) == "w1" and "needs a, b" in capsys.readouterr().err
    assert tokenizer.decode(talk.ask('{"a": "w1", "b": 2}').ids) == "w1 w7 <unk>"
