"""The generation of one request, behind the interface that transformers' request handlers call."""

import asyncio
import logging
import math
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from time import perf_counter
from typing import Any

import torch
from torch import Tensor
from transformers import BatchEncoding, GenerationConfig
from transformers.cli.serving.utils import (
    BaseGenerateManager,
    DirectStreamer,
    _StreamError,
    response_events_to_chunks,
)

from dwellmoe.errors import UserError, first_line, refusal
from dwellmoe.evaluation.generation import run_model
from dwellmoe.serving.errors import GenerationFailed
from dwellmoe.serving.figures import AnswerLog
from dwellmoe.serving.generation_queue import LEFT, Place
from dwellmoe.serving.served_model import ServedModel, Variant
from dwellmoe.serving.stop_texts import StopTexts

PAUSE_SECONDS = 0.04
"""Between two pieces of a stream at least: twenty-five a second read as one flow."""


class Ended(Exception):
    """The answer ends here, though the model would go on."""


class AnswerStreamer(DirectStreamer):
    """Hands on the text of an answer while it is written, up to the first stop text.

    pause_seconds  between two pieces at least: text that comes sooner goes with that of the next token, for
                   each piece takes time from the model. The first piece and the last one do not wait.
    """

    def __init__(
        self,
        tokenizer: Any,
        queue: asyncio.Queue,
        parser: Any,
        stop: StopTexts,
        log: AnswerLog,
        pause_seconds: float,
    ) -> None:
        super().__init__(tokenizer._tokenizer, asyncio.get_running_loop(), queue, parser)
        self.token_ids: list[int] = []
        self.stop, self.text = stop, ""
        """`text`: all of the answer so far; where a parser takes it apart, before that."""
        self._log, self._pause_seconds = log, pause_seconds
        self._waiting, self._handed_on_at = "", -math.inf

    def put(self, value: Tensor) -> None:
        """The prompt, then one token at a time. Raises Ended after the token that completes a stop text."""
        if self._first:
            self._first = False
            return
        for token_id in value.tolist():
            self.token_ids.append(token_id)
            self.total_tokens += 1
            piece = self._decode_stream.step(self._tokenizer, token_id) or ""
            self._log.add(piece)
            self._hand_on(self.stop.add(piece))
        if self.stop.found:
            raise Ended

    def end(self) -> None:
        """Called by `generate` after the last token."""

    def finish(self) -> None:
        """Hands on the rest of the answer, and its end."""
        self._flush(self.stop.rest())
        super().end()

    def fail(self, reason: str) -> None:
        """Ends the answer with an error in place of its end, where there is a client to read it."""
        self._flush()
        self._enqueue(None if reason == LEFT else _StreamError(reason))

    def _flush(self, text: str = "") -> None:
        self._pause_seconds = 0
        self._hand_on(text)

    def _hand_on(self, text: str) -> None:
        self.text += text
        self._waiting += text
        now = perf_counter()
        if not self._waiting or now < self._handed_on_at + self._pause_seconds:
            return
        text, self._waiting, self._handed_on_at = self._waiting, "", now
        items = response_events_to_chunks(self._parser.feed(text)) if self._parser else [text]
        for item in items:
            self._enqueue(item)


@dataclass(frozen=True)
class Answering:
    """What is asked: the prompt's tokens, how the answer is sampled and where it ends."""

    variant: Variant
    prompt: list[int]
    config: GenerationConfig
    seed: int | None
    stops: list[str]


class Generation(BaseGenerateManager):
    """One request's generation: waits for its turn in the queue, then runs `model.generate`."""

    def __init__(self, served: ServedModel, asked: Answering, place: Place, log: AnswerLog) -> None:
        self.served, self.asked, self.place = served, asked, place
        self.failure: GenerationFailed | None = None
        self._log = log

    def generate_streaming(
        self, model, processor, inputs, gen_config, request_id, response_parser=None
    ) -> tuple[asyncio.Queue, DirectStreamer]:
        """Begins; the queue gets text, reasoning and tool calls, and in the end None or an error."""
        return self._begin(response_parser, PAUSE_SECONDS)

    def _begin(self, parser: Any, pause_seconds: float) -> tuple[asyncio.Queue, AnswerStreamer]:
        queue: asyncio.Queue = asyncio.Queue()
        stop = StopTexts(self.asked.stops)
        streamer = AnswerStreamer(self.served.tokenizer, queue, parser, stop, self._log, pause_seconds)
        self.place.submit(lambda: self._run(streamer), lambda reason: self._fail(streamer, 503, reason))
        return queue, streamer

    async def generate_non_streaming(
        self, model, processor, inputs, gen_config, request_id
    ) -> tuple[str, int, list[int]]:
        """The whole text, the prompt's length and the tokens. Raises GenerationFailed."""
        queue, streamer = self._begin(None, math.inf)
        while await queue.get() is not None and self.failure is None:
            pass
        if self.failure:
            raise self.failure
        return streamer.text, len(self.asked.prompt), self._tokens_before_stop(streamer)

    def stop(self) -> None:
        """Nothing of its own to stop: the queue has the thread."""

    def _run(self, streamer: AnswerStreamer) -> Callable[[], None]:
        """Writes the answer, on the thread of the queue; gives what tells its end."""
        try:
            self.place.check()
            self._log.begin(len(self.asked.prompt))
            if self.asked.seed is not None:
                torch.manual_seed(self.asked.seed)
            with self.served.as_variant(self.asked.variant, self.place.check):
                self._write(streamer)
            return streamer.finish
        except GenerationFailed as error:
            return partial(self._fail, streamer, error.status, error.message)
        except Exception as error:
            return partial(self._fail, streamer, 500, _reason(error))

    def _write(self, streamer: AnswerStreamer) -> None:
        prompt = torch.tensor([self.asked.prompt])
        config = self.asked.config
        with suppress(Ended):
            run_model(
                self.served.evaluated,
                prompt,
                torch.ones_like(prompt),
                generation_config=config,
                streamer=streamer,
            )

    def _fail(self, streamer: AnswerStreamer, status: int, reason: str) -> None:
        self.failure = GenerationFailed(status, reason)
        streamer.fail(reason)

    def _tokens_before_stop(self, streamer: AnswerStreamer) -> list[int]:
        """The tokens of the answer without those that the stop text begins in, which parsers would read."""
        ids = streamer.token_ids
        while streamer.stop.found and any(stop in self._decoded(ids) for stop in self.asked.stops):
            ids = ids[:-1]
        return ids

    def _decoded(self, ids: list[int]) -> str:
        return self.served.tokenizer.decode(ids)


def _reason(error: Exception) -> str:
    """What a client is told: a fault that is ours is for the log of the server alone."""
    if isinstance(error, UserError):
        return str(error)
    if refused := refusal(error):
        return refused
    logging.getLogger(__name__).error("a generation failed", exc_info=error)
    return f"the generation failed: {type(error).__name__}: {first_line(error)}"


class Prompt:
    """The tokens of a prompt where transformers' handlers expect a tokenizer that they call on a body; for
    everything else it is the tokenizer.
    """

    def __init__(self, tokenizer: Any, token_ids: list[int]) -> None:
        ids = torch.tensor([token_ids])
        self._tokenizer_of_model = tokenizer
        self._inputs = BatchEncoding({"input_ids": ids, "attention_mask": torch.ones_like(ids)})

    def __call__(self, *_: Any, **__: Any) -> BatchEncoding:
        return self._inputs

    apply_chat_template = __call__

    def __getattr__(self, name: str) -> Any:
        return getattr(self._tokenizer_of_model, name)
