"""Transformers' handlers of OpenAI's requests, given our loaded model in place of one that they would load.

A handler reads a checked body, asks for a model, a prompt and a generation, and writes the response. Here
each is made for one request: what it asks for is there already, so no name in a request reaches hub or files.
"""

import json
from collections.abc import AsyncIterable, AsyncIterator
from typing import Any

import openai  # noqa: F401 - transformers' handlers need it, and do not say so where it is missing
from transformers import GenerationConfig
from transformers.cli.serving.chat_completion import ChatCompletionHandler
from transformers.cli.serving.completion import CompletionHandler
from transformers.cli.serving.model_manager import ModelManager
from transformers.cli.serving.response import ResponseHandler
from transformers.cli.serving.utils import GenerationState, Modality

from dwellmoe.serving.generation import Generation, Prompt

NO_TEXT = "\0"
"""Stands for a piece of text: no name of a model or of a request holds it."""


class _LoadedModel(ModelManager):
    """Gives the one model, whatever its name: the name was checked before."""

    def __init__(self, model: Any, prompt: Prompt) -> None:
        self.force_model = None
        self._model, self._prompt = model, prompt

    @staticmethod
    def process_model_name(model_id: str) -> str:
        return model_id

    def load_model_and_processor(self, *_: Any, **__: Any) -> Any:
        return self._model, self._prompt

    @staticmethod
    def get_model_modality(*_: Any, **__: Any) -> Modality:
        return Modality.LLM


class _OneGeneration(GenerationState):
    """Gives the generation of the one request."""

    def __init__(self, generation: Generation) -> None:
        super().__init__()
        self.generation = generation

    def get_manager(self, model_id: str, use_cb: bool = False) -> Generation:
        return self.generation


class _ForOneRequest:
    """What the handlers have in common."""

    done = "data: [DONE]\n\n"
    """The last event of a stream."""
    generation_state: _OneGeneration

    def __init__(self, generation: Generation) -> None:
        served, asked = generation.served, generation.asked
        loaded = _LoadedModel(served.evaluated.model, Prompt(served.tokenizer, asked.prompt))
        super().__init__(model_manager=loaded, generation_state=_OneGeneration(generation))  # type: ignore[call-arg]

    def _build_generation_config(self, *_: Any, **__: Any) -> GenerationConfig:
        return self.generation_state.generation.asked.config


class ChatHandler(_ForOneRequest, ChatCompletionHandler):
    """/v1/chat/completions."""


class TextHandler(_ForOneRequest, CompletionHandler):
    """/v1/completions."""

    _form: list[str] | None = None
    """The event of a piece of text, before and after the text."""

    def _build_chunk_sse(self, request_id: str, model_id: str, text: str = "", **fields: Any) -> str:
        # Each event made of openai's own types would take a hundredth of a small model's token.
        if fields:
            return super()._build_chunk_sse(request_id, model_id, text, **fields)
        if self._form is None:
            self._form = super()._build_chunk_sse(request_id, model_id, NO_TEXT).split(json.dumps(NO_TEXT))
        return json.dumps(text, ensure_ascii=False).join(self._form)


class ResponsesHandler(_ForOneRequest, ResponseHandler):
    """/v1/responses, whose last event is one of its own."""

    done = ""


Handler = ChatHandler | TextHandler | ResponsesHandler


async def with_end(events: AsyncIterable[Any], handler: Handler) -> AsyncIterator[str]:
    """A handler's events as OpenAI's clients expect them: errors are objects, `[DONE]` is the last one."""
    generation = handler.generation_state.generation
    async for event in events:
        failure = generation.failure
        if failure and handler.done:  # the handler has put its words between quotes, whatever they are
            written = f'data: {{"error": "{failure.message}"}}\n\n'
            event = event.replace(written, f"data: {json.dumps(failure.fields())}\n\n")
        yield event
    if handler.done:
        yield handler.done
