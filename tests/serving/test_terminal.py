"""`dwellmoe chat` in a real terminal: its prompt, its commands, Ctrl-C during a reply, long replies."""

import fcntl
import os
import pty
import re
import select
import struct
import termios
import time
from contextlib import suppress
from functools import partial
from pathlib import Path

import pytest

from tests.conftest import ROOT, command_environment
from tests.warm_python import WarmPython

MODEL = str(ROOT / "models" / "tiny-olmoe")
CODES = re.compile(r"\x1b\[[0-9;?]*[a-zA-Z]|\r")
CTRL_C, CTRL_D = b"\x03", b"\x04"
FIGURES = "tokens, first"


class Terminal:
    """A terminal in which a command runs, and what it has shown."""

    def __init__(
        self, python: WarmPython, folder: Path, *words: str, lines: int = 24, columns: int = 80
    ) -> None:
        self._ours, theirs = pty.openpty()
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))
        environment = command_environment(folder, TERM="xterm")
        self.process = python.start(["-m", "dwellmoe", *words], folder, environment, os.ttyname(theirs))
        os.close(theirs)
        self.shown = ""

    def type(self, keys: bytes) -> None:
        self.shown = ""
        os.write(self._ours, keys)

    def until(self, text: str, seconds: float = 60) -> str:
        """What was shown since something was typed, up to when `text` stands there, without control codes."""
        end = time.monotonic() + seconds
        while text not in CODES.sub("", self.shown):
            assert time.monotonic() < end, f"{text!r} was not shown: {self.shown!r}"
            if select.select([self._ours], [], [], 0.1)[0]:
                self.shown += os.read(self._ours, 65_536).decode(errors="replace")
        return CODES.sub("", self.shown)

    def type_until(self, keys: bytes, text: str) -> str:
        """Types them again each second: CPython's `input` overlooks a signal that comes between its prompt
        and its first look for a key.
        """
        for _ in range(60):
            self.type(keys)
            with suppress(AssertionError):
                return self.until(text, seconds=1)
        raise AssertionError(f"{text!r} was not shown")

    def last_frame(self) -> str:
        """What was written since the cursor went up last, to show a reply anew."""
        return CODES.sub("", self.shown.rpartition("\x1b[1A")[2])

    def close(self) -> None:
        self.process.end()
        os.close(self._ours)


@pytest.fixture
def terminal(warm_python, tmp_path):
    """Runs a command of `dwellmoe` in a terminal."""
    return partial(Terminal, warm_python, tmp_path)


@pytest.fixture
def chat(request, terminal):
    found = terminal("chat", MODEL, "--expert_budget", "25%", *getattr(request, "param", ()))
    found.until("> ")
    yield found
    found.close()


@pytest.mark.slow
def test_a_chat_with_all_its_commands(folder, terminal):
    model, adapter = f"{folder}/model", f"{folder}/control"
    chat = terminal("chat", model, "--adapter", adapter, "--expert_budget", "50%", "--dtype", "float32")
    try:
        assert "chat with control" in chat.until("> ")
        for typed, due in (
            ("w1 w2", FIGURES),
            ("/budget 100%", "8 of 8 experts a layer"),
            ("/adapter off", "model replies from now on"),
            ("/adapter on", "control replies from now on"),
            ("/stats", "device hit rate"),
            ("/budget lots", "error: "),
            ("/nothing", "error: unknown command"),
            ("/new", "> "),
            ("w1 w2", FIGURES),
        ):
            chat.type(typed.encode() + b"\n")
            assert "Traceback" not in chat.until(due)
            chat.until("> ") if due != "> " else None
        chat.type(b"w1 \xff\n")
        assert "UTF-8" in chat.until("\n> ")
        chat.type(CTRL_D)
        assert chat.process.wait(30) == 0
    finally:
        chat.close()


@pytest.mark.slow
@pytest.mark.parametrize("chat", [("--max_new_tokens", "200")], indirect=True)
def test_ctrl_c_ends_a_reply_and_then_the_chat(chat):
    whole = []
    for begun in (None, "reading the prompt", FIGURES, "waited a token", None):
        chat.type(b"/new\n")
        chat.until("> ")
        chat.type(b"Tell me a story about a fox.\n")
        if begun is None:
            chat.until("waited a token]\n> ")
            whole.append(chat.last_frame().rpartition("[")[0])
        else:
            chat.until(begun)  # until a line is read, Ctrl-C takes it back
            chat.type(CTRL_C)
            assert "Traceback" not in chat.until("]\n> ")
            assert "ended by Ctrl-C" in chat.last_frame()
    assert whole[0] == whole[1] and len(whole[0]) > 100
    chat.type_until(CTRL_C, "chat ended")
    assert chat.process.wait(30) == 0


@pytest.mark.slow
def test_of_a_long_reply_the_end_is_seen_while_it_is_written(terminal):
    chat = terminal("chat", MODEL, "--expert_budget", "25%", "--max_new_tokens", "300", lines=6, columns=30)
    try:
        chat.until("> ")
        chat.type(b"Tell me a story about a fox.\n")
        chat.until("waited a token]\n> ")
        assert chat.shown.count(FIGURES) > 1, "the figures below it stay in view, too"
    finally:
        chat.close()
