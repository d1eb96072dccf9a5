"""The bodies of requests: which fields are read, which values they take, and what is refused by name."""

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from dwellmoe.log import warn_once
from dwellmoe.serving.errors import RequestError

MOST_MESSAGES = 10_000
Kind = TypeVar("Kind", bound=BaseModel)
BODY: TypeAdapter[dict[str, Any]] = TypeAdapter(dict[str, Any])

Texts = Annotated[list[Annotated[str, Field(min_length=1, max_length=1000)]], Field(max_length=16)]
NewTokens = Annotated[int, Field(ge=1)]
NOTHING = (None, False, 0, [], {}, "")
UNSUPPORTED: Mapping[str, tuple[Any, ...]] = {
    **dict.fromkeys(("frequency_penalty", "presence_penalty", "logprobs", "top_logprobs", "logit_bias"), ()),
    **dict.fromkeys(("echo", "suffix", "audio", "functions", "function_call", "prediction"), ()),
    **dict.fromkeys(("web_search_options", "background", "include", "max_tool_calls"), ()),
    **dict.fromkeys(("previous_response_id", "conversation", "generation_config"), ()),
    "n": (1,),
    "best_of": (1,),
    "modalities": (["text"],),
    "response_format": ({"type": "text"},),
    "text": ({"format": {"type": "text"}},),
    "tool_choice": ("auto",),
    "truncation": ("disabled",),
}
"""Field that would change the answer and is not supported -> its values that change nothing, beside none."""
IGNORED = (
    *("user", "metadata", "store", "service_tier", "parallel_tool_calls", "reasoning_effort", "reasoning"),
    *("safety_identifier", "prompt_cache_key", "prompt_cache_retention", "verbosity"),
)
"""Fields that are of OpenAI's own service."""
WITHOUT_EFFECT = ("stream_options",)
"""The last event of a stream holds the usage in any case."""


class _Part(BaseModel):
    model_config = ConfigDict(strict=True)
    type: Literal["text", "input_text", "output_text"]
    text: str


class Message(BaseModel):
    """One message of a conversation; other fields, such as tool calls, go to the chat template."""

    model_config = ConfigDict(strict=True, extra="allow")
    role: Literal["system", "developer", "user", "assistant", "tool", "function"]
    content: str | list[_Part] | None = None


class GenerationRequest(BaseModel):
    """What all requests for an answer have in common."""

    model_config = ConfigDict(strict=True, extra="allow")
    model: str
    stream: bool | None = None
    temperature: Annotated[float, Field(ge=0, le=2, allow_inf_nan=False)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1, allow_inf_nan=False)] | None = None
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = None
    stop: Annotated[str, Field(min_length=1, max_length=1000)] | Texts | None = None

    id_prefix: ClassVar[str]
    """Of the ids of its responses."""

    @property
    def new_tokens(self) -> int | None:
        """The most tokens of the answer, if the request says."""
        raise NotImplementedError

    def without_prompt(self) -> dict[str, Any]:
        """The field of the prompt, empty."""
        raise NotImplementedError

    @property
    def stops(self) -> list[str]:
        return [self.stop] if isinstance(self.stop, str) else self.stop or []


class ChatRequest(GenerationRequest):
    """The body of /v1/chat/completions."""

    id_prefix = "chatcmpl-"
    messages: Annotated[list[Message], Field(min_length=1, max_length=MOST_MESSAGES)]
    max_tokens: NewTokens | None = None
    max_completion_tokens: NewTokens | None = None
    tools: list[dict[str, Any]] | None = None
    chat_template_kwargs: dict[str, Any] | None = None

    @property
    def new_tokens(self) -> int | None:
        return self.max_tokens if self.max_completion_tokens is None else self.max_completion_tokens

    def without_prompt(self) -> dict[str, Any]:
        return {"messages": []}


class CompletionRequest(GenerationRequest):
    """The body of /v1/completions."""

    id_prefix = "cmpl-"
    prompt: str | list[int] | Annotated[list[str], Field(max_length=1)]
    max_tokens: NewTokens | None = None

    @property
    def new_tokens(self) -> int | None:
        return self.max_tokens

    def without_prompt(self) -> dict[str, Any]:
        return {"prompt": ""}


class ResponseRequest(GenerationRequest):
    """The body of /v1/responses."""

    id_prefix = ""
    stop: None = None
    """OpenAI's API has none here."""
    input: str | Annotated[list[dict[str, Any]], Field(min_length=1, max_length=MOST_MESSAGES)]
    instructions: str | None = None
    max_output_tokens: NewTokens | None = None
    tools: list[dict[str, Any]] | None = None
    chat_template_kwargs: dict[str, Any] | None = None

    @property
    def new_tokens(self) -> int | None:
        return self.max_output_tokens

    def without_prompt(self) -> dict[str, Any]:
        return {"input": ""}


class BudgetRequest(BaseModel):
    """The body of POST /v1/expert_cache."""

    model_config = ConfigDict(strict=True, extra="forbid")
    budget: Annotated[str, Field(min_length=1, max_length=100)]


def read_object(data: bytes) -> dict[str, Any]:
    """The JSON object that a body is. Raises RequestError, also for bytes that are not UTF-8."""
    try:
        return BODY.validate_json(data)
    except ValidationError as error:
        raise RequestError(400, f"the body is not a JSON object: {_words(error)}") from None


def checked(kind: type[Kind], body: dict[str, Any]) -> Kind:
    """A body as a request. Raises RequestError, which names the field that cannot be."""
    for name, harmless in UNSUPPORTED.items():
        if (value := body.get(name)) not in NOTHING and value not in harmless:
            message = f"'{name}' is not supported: leave it out"
            raise RequestError(400, message, param=name, code="unsupported_parameter")
    if ignored := [name for name in IGNORED if body.get(name) is not None]:
        warn_once(f"requests: {', '.join(ignored)}: without effect here")
    if unknown := sorted(body.keys() - {*kind.model_fields, *UNSUPPORTED, *IGNORED, *WITHOUT_EFFECT}):
        name = unknown[0][:200]
        message = f"'{name}' is no field of this request: leave it out"
        raise RequestError(400, message, param=name, code="unknown_parameter")
    try:
        return kind.model_validate(body)
    except ValidationError as error:
        raise RequestError(400, _words(error), param=str(_fault(error)["loc"][0])) from None


def _words(error: ValidationError) -> str:
    """What is wrong, where, and the value."""
    fault = _fault(error)
    where = ".".join(str(part) for part in fault["loc"] if not _is_kind(part))
    found = "" if fault["type"] == "missing" or not where else f", found {fault['input']!r:.60}"
    return f"{where}: {fault['msg']}{found}" if where else fault["msg"]


def _fault(error: ValidationError) -> Mapping[str, Any]:
    """Of the faults of the first field that has some, the one that says most: a field that may be of several
    kinds has one for each, most of which say only that it is not of that kind.
    """
    faults = error.errors(include_url=False, include_context=False)
    of_field = [fault for fault in faults if fault["loc"][:1] == faults[0]["loc"][:1]]
    return max(of_field, key=lambda fault: (not fault["type"].endswith("_type"), len(fault["loc"])))


def _is_kind(part: int | str) -> bool:
    """Whether a part of a fault's place is one of the kinds that a field may be of, and no name or number."""
    return isinstance(part, str) and (part == "str" or not part.isidentifier())
