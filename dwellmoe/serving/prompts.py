"""The tokens of a request's prompt, in the words that the model or adapter was trained in."""

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import ValidationError
from transformers import PreTrainedTokenizerBase
from transformers.cli.serving.response import ResponseHandler
from transformers.cli.serving.utils import BaseHandler, Modality

from dwellmoe.data.chat_template import REASONING_OFF
from dwellmoe.data.wording import Wording, conversation_prompt
from dwellmoe.errors import UserError
from dwellmoe.evaluation.requests import prompt_ids
from dwellmoe.evaluation.wording import question_text
from dwellmoe.log import warn_once
from dwellmoe.serving.errors import RequestError
from dwellmoe.serving.requests import (
    ChatRequest,
    CompletionRequest,
    GenerationRequest,
    Message,
    ResponseRequest,
    checked,
)

MALFORMED = (KeyError, TypeError, ValueError, AttributeError, IndexError)
"""What transformers raises for messages of another shape than it knows."""
RESERVED = {*inspect.signature(PreTrainedTokenizerBase.apply_chat_template).parameters}
"""Names that a chat template cannot take as options of its own."""


def token_ids(request: GenerationRequest, wording: Wording, tokenizer: Any, vocabulary: int) -> list[int]:
    """The prompt of a request as tokens. Raises RequestError for one that cannot be asked."""
    try:
        found = _token_ids(request, wording, tokenizer)
    except (UserError, ValidationError) as error:
        raise RequestError(400, str(error)) from None
    if not found:
        raise RequestError(400, "the prompt is empty")
    if wrong := next((token for token in found if not 0 <= token < vocabulary), None):
        raise RequestError(
            400, f"prompt: the vocabulary of {vocabulary} has no token {wrong}", param="prompt"
        )
    return found


def _token_ids(request: GenerationRequest, wording: Wording, tokenizer: Any) -> list[int]:
    if isinstance(request, CompletionRequest):
        prompt = request.prompt
        if isinstance(prompt, list) and prompt and isinstance(prompt[0], int):
            return prompt  # type: ignore[return-value]
        text = "".join(prompt)  # type: ignore[arg-type]
    else:
        assert isinstance(request, ChatRequest | ResponseRequest)
        text = _conversation(request, wording, tokenizer)
    return prompt_ids(tokenizer, text, max_tokens=None).ids


def _conversation(request: ChatRequest | ResponseRequest, wording: Wording, tokenizer: Any) -> str:
    messages = _messages(request)
    tools = ResponseHandler._normalize_tools(request.tools)
    if tools and not wording.chat_template:
        raise RequestError(400, "tools: this model is asked without a chat template", param="tools")
    if wording.one_by_one:
        messages = _last_alone(messages, wording)
    if not wording.of_conversations:
        messages = [_worded(message, wording) for message in messages]
    options = {**REASONING_OFF, **_template_options(request.chat_template_kwargs or {})}
    return conversation_prompt(wording, messages, tokenizer, options | ({"tools": tools} if tools else {}))


def _messages(request: ChatRequest | ResponseRequest) -> list[dict[str, Any]]:
    """The messages as chat templates take them. Raises RequestError for what is no message of text."""
    try:
        given = _given_messages(request)
        found = BaseHandler.get_processor_inputs_from_messages(given, Modality.LLM)
    except MALFORMED as error:
        field = "messages" if isinstance(request, ChatRequest) else "input"
        why = f"{type(error).__name__} {error}"
        raise RequestError(400, f"{field}: not as OpenAI's API has it: {why}", param=field) from None
    return [{**one, "role": "system" if one["role"] == "developer" else one["role"]} for one in found]


def _given_messages(request: ChatRequest | ResponseRequest) -> list[dict[str, Any]]:
    if isinstance(request, ChatRequest):
        return [message.model_dump(exclude_none=True) for message in request.messages]
    given = ResponseHandler._normalize_input({"input": request.input, "instructions": request.instructions})
    try:
        return [checked(Message, message).model_dump(exclude_none=True) for message in given]
    except RequestError as error:
        raise RequestError(400, f"input: {error.message}", param="input", code=error.code) from None


def _last_alone(messages: Sequence[dict[str, Any]], wording: Wording) -> list[dict[str, Any]]:
    """The last message of the user; that the others are left out is said."""
    asked = [message for message in messages if message["role"] == "user"]
    if not asked:
        raise RequestError(400, "messages: none of the user", param="messages")
    if len(messages) > 1:
        warn_once(f"requests: the words of '{wording.task}' ask the user's last message alone")
    return asked[-1:]


def _worded(message: dict[str, Any], wording: Wording) -> dict[str, Any]:
    if message["role"] != "user":
        return message
    return {**message, "content": question_text(wording, message["content"], must_fit=False)}


def _template_options(given: Mapping[str, Any]) -> Mapping[str, Any]:
    """Options of the chat template's own. Raises RequestError for names that mean another thing."""
    if taken := sorted(RESERVED & set(given)):
        message = f"chat_template_kwargs: '{taken[0]}' is not an option of a chat template"
        raise RequestError(400, message, param="chat_template_kwargs")
    return given
