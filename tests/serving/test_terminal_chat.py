"""A chat in the terminal: its replies, its figures, its commands."""

import io

import pytest
from rich.console import Console

from dwellmoe.cli.chat import parse_options
from dwellmoe.serving.settings import ChatSettings


def talk(served, *lines, **settings) -> str:
    from dwellmoe.serving.terminal_chat import TerminalChat

    out = io.StringIO()
    console = Console(file=out, width=200, highlight=False)
    TerminalChat(served, ChatSettings(max_new_tokens=6, **settings), console).run(lines)
    return out.getvalue()


def test_a_reply_stands_above_its_figures(served):
    shown = talk(served, "w1 w2 w3\n")
    assert "tokens, first" in shown and "hit rate 0." in shown and "MB read" in shown


def test_a_reply_is_that_of_the_server(served, client):
    body = {"model": "model", "messages": [{"role": "user", "content": "w1 w2"}], "max_tokens": 6}
    expected = client.post("/v1/chat/completions", json=body).json()["choices"][0]["message"]["content"]
    assert expected in talk(served, "/adapter off", "w1 w2")


def test_commands(served):
    shown = talk(served, "/help", "/budget 4", "w1", "/stats", "/budget 2", "/adapter tuned", "/new", "w1")
    assert "4 of 8 experts a layer" in shown and "2 of 8 experts a layer" in shown
    assert "tuned replies from now on" in shown and "device hit rate" in shown


def test_another_wording_begins_a_new_conversation(served):
    assert "a new conversation begins" in talk(served, "/adapter off", "/adapter on")
    assert (
        "a new conversation begins" not in talk(served, "/adapter tuned", "/adapter off").partition("off")[2]
    )


@pytest.mark.parametrize(
    ("line", "named"),
    [
        *(("/bugdet 4", "/budget"), ("/budget", "/budget"), ("/budget lots", "lots")),
        *(("/adapter best", "tuned"), (b"\xff\n", "UTF-8"), ("w1 " * 200, "20")),
    ],
)
def test_what_cannot_be_done_is_said_and_the_chat_goes_on(served, line, named):
    shown = talk(served, line, "w1")
    assert f"{named}" in shown.partition("error: ")[2] and "tokens, first" in shown


def test_ctrl_c_ends_a_reply_and_keeps_it(served, monkeypatch):
    from dwellmoe.serving import terminal_chat

    def interrupted(self, piece, add=terminal_chat.AnswerLog.add):
        add(self, piece)
        if len(self.tokens) == 3:
            raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(terminal_chat.AnswerLog, "add", interrupted)
        shown = talk(served, "w1", "/stats")
    assert "ended by Ctrl-C; 3 tokens" in shown and "device hit rate" in shown
    assert "tokens, first" in talk(served, "w1")


@pytest.mark.parametrize("where", ["Conversation.ask", "AnswerLog.begin"])
def test_ctrl_c_before_a_reply_has_words_does_not_end_the_chat(where, served, monkeypatch):
    from dwellmoe.serving import terminal_chat

    name, method = where.split(".")
    kind, pressed = getattr(terminal_chat, name), []
    go_on = getattr(kind, method)

    def interrupted(self, *given):
        if not pressed:
            pressed.append(True)
            raise KeyboardInterrupt
        return go_on(self, *given)

    monkeypatch.setattr(kind, method, interrupted)
    ended, _, after = talk(served, "w1", "w1").partition("ended by Ctrl-C")
    assert "chat ended" not in ended + after and "tokens, first" in after


def test_a_reply_cannot_command_the_terminal(served, monkeypatch):
    from dwellmoe.serving import terminal_chat

    class Stream:
        def __init__(self, *_, **__): ...

        def step(self, *_):
            return "a\x1b]0;title\x07\x9bb\n"

    monkeypatch.setattr(terminal_chat, "DecodeStream", Stream)
    shown = talk(served, "w1")
    assert "a\ufffd]0;title\ufffd\ufffdb\n" in shown and "\x1b" not in shown


def test_its_options(folder):
    options = parse_options([f"{folder}/model", "--temperature", "0.5", "--expert_budget", "25%"])
    assert options.own.temperature == 0.5 and options.engine.expert_budget == "25%"
