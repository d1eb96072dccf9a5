"""What a client of a stream gets, piece by piece."""

import asyncio
import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers.cli.serving.utils import _StreamError

from dwellmoe.serving import generation
from dwellmoe.serving.figures import AnswerLog, Figures
from dwellmoe.serving.generation import AnswerStreamer
from dwellmoe.serving.stop_texts import StopTexts

LETTERS = "abcdef"


class Letters:
    """Decodes token n as the nth letter."""

    def step(self, _: Any, token: int) -> str:
        return LETTERS[token]


def pieces(monkeypatch, seconds, pause_seconds=0.02, fails=False) -> list:
    """What the queue is given for tokens that come at these times."""
    now = iter([*seconds, seconds[-1] + 1e-3])
    monkeypatch.setattr(generation, "perf_counter", lambda: next(now))

    async def run() -> list:
        queue: asyncio.Queue = asyncio.Queue()
        log = AnswerLog("model", Figures(None, lambda _: None), 0.0)
        tokenizer = SimpleNamespace(_tokenizer=None)
        streamer = AnswerStreamer(tokenizer, queue, None, StopTexts([]), log, pause_seconds)
        streamer._decode_stream = Letters()  # type: ignore[assignment]
        streamer.put(torch.tensor([[7]]))
        for number in range(len(seconds)):
            streamer.put(torch.tensor([number]))
        streamer.fail("a fault") if fails else streamer.finish()
        assert streamer.text == LETTERS[: len(seconds)]
        found = [await queue.get()]
        while found[-1] is not None and not isinstance(found[-1], _StreamError):
            found.append(await queue.get())
        return found[:-1]

    return asyncio.run(run())


@pytest.mark.parametrize(
    ("seconds", "due"),
    [
        ([0, 1, 2], ["a", "b", "c"]),
        ([0, 0.005, 0.03, 0.031], ["a", "bc", "d"]),
        ([0, 0.005, 0.01, 0.019, 0.021], ["a", "bcde"]),
        ([5.0], ["a"]),
    ],
)
@pytest.mark.parametrize("fails", [False, True])
def test_tokens_that_come_at_once_go_out_together(monkeypatch, seconds, due, fails):
    assert pieces(monkeypatch, seconds, fails=fails) == due


def test_whole_answers_wake_nobody_for_a_token(monkeypatch):
    assert pieces(monkeypatch, [0, 1, 2, 3], pause_seconds=math.inf) == ["a", "bcd"]
