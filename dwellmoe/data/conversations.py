"""Conversations as text of which every answer is learned, in the model's chat template or in plain words.

Where an answer stands is read off the template's generation marks or, without marks, off prefixes: what the
template makes of the turns before an answer, ready for a reply, must be the beginning of what it makes of the
whole, and so must the turns up to its end. Where they do not nest, a model would be trained on what it never
sees when it is asked, so that is refused.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from dwellmoe.data.chat_template import REASONING_OFF, Span, has_marks, marked, templated
from dwellmoe.data.chat_turns import Chat, Message
from dwellmoe.data.fields import conversation_text
from dwellmoe.errors import UserError
from dwellmoe.log import warn_once

INSTEAD = (
    "choose a template with {% generation %} marks, --use_chat_template off (plain words), or a task file of "
    "messages, which learns the last answer alone"
)


@dataclass(frozen=True)
class Rendered:
    """A conversation as text."""

    text: str
    spans: list[Span]
    """The parts that are learned: each answer with what ends its turn, in order."""
    ended: bool = False
    """Whether the text ends with a token that ends a turn."""

    @property
    def cuts(self) -> list[int]:
        """Where the text changes from given to learned and back."""
        return [cut for span in self.spans for cut in span]

    @property
    def pieces(self) -> list[str]:
        """The text in pieces: given, learned, given, learned, ..., given."""
        return [self.text[start:stop] for start, stop in pairwise([0, *self.cuts, len(self.text)])]


def in_plain_words(chat: Chat) -> Rendered:
    """A conversation with a line a message, each after its role."""

    def lines(messages: Sequence[Message], reply: bool) -> str:
        text = conversation_text(messages)
        return text if reply else text.removesuffix("Assistant:")

    text, spans = _nested(chat, lines)
    *earlier, (start, stop) = spans
    return Rendered(text[:-1], [*earlier, (start, stop - 1)])  # without the end of the last line


def in_template(chat: Chat, tokenizer: Any) -> Rendered:
    """A conversation in the chat template. Raises UserError where its answers cannot be told apart."""
    ends = tuple(token.content for token in tokenizer.added_tokens_decoder.values() if token.content.strip())
    found = _marked(chat, tokenizer) if has_marks(tokenizer) else _by_prefixes(chat, tokenizer, ends)
    text, spans = found
    spans = [(start, _end_of_turn(text, start, stop, ends)) for start, stop in spans]
    text = text[: _end_of_turn(text, 0, len(text), ends)]
    return Rendered(text, spans, text.endswith(ends))


def _end_of_turn(text: str, start: int, stop: int, ends: tuple[str, ...]) -> int:
    """Where a part of a text ends: white space after a token that ends a turn is never generated."""
    answer = text[start:stop].rstrip()
    return start + len(answer) if answer.endswith(ends) else stop


def _marked(chat: Chat, tokenizer: Any) -> tuple[str, list[Span]]:
    text, marks = marked(chat.messages, tokenizer)
    spans = _joined(text, [mark for mark in sorted(marks) if text[slice(*mark)].strip()])
    _check_order(chat, text)
    answers = sum(message["role"] == "assistant" for message in chat.messages)
    if len(spans) == answers:
        spans = spans[-len(chat.answers) :]
        for position, (start, stop) in zip(chat.answers, spans, strict=True):
            _check_holds(chat, position, text[start:stop])
        return text, spans
    raise UserError(
        f"the chat template of '{tokenizer.name_or_path}' marks {len(spans)} parts as the assistant's, of "
        f"{answers} answers"
    )


def _joined(text: str, marks: list[Span]) -> list[Span]:
    """Marks with nothing but white space between them are of one answer."""
    spans: list[Span] = []
    for start, stop in marks:
        if spans and not text[spans[-1][1] : start].strip():
            start = spans.pop()[0]
        spans.append((start, stop))
    return spans


def _by_prefixes(chat: Chat, tokenizer: Any, ends: tuple[str, ...]) -> tuple[str, list[Span]]:
    """With reasoning off, as a model is asked; else, where answers hold reasoning, as the template has it."""

    def spans_with(options: Mapping[str, Any]) -> tuple[str, list[Span]]:
        return _nested(chat, lambda messages, reply: templated(messages, tokenizer, reply, options), ends)

    try:
        return spans_with(REASONING_OFF)
    except UserError as error:
        try:
            found = spans_with({})
        except UserError:
            raise error from None
    warn_once(
        "some answers hold reasoning: they are learned after the chat template's prompt with reasoning on, "
        "while --input and --chat_mode ask with reasoning off"
    )
    return found


def _nested(
    chat: Chat, render: Callable[[Sequence[Message], bool], str], ends: tuple[str, ...] = ()
) -> tuple[str, list[Span]]:
    """The text of a conversation and the spans of its answers, by comparing prefixes. Raises UserError.

    Only the tokens that end a turn (`ends`) may be others when more turns follow; they are then not learned.
    """
    whole = render(chat.messages, False)
    spans: list[Span] = []
    for position in chat.answers:
        before = render(chat.messages[:position], True)
        until = _shared(whole, render(chat.messages[: position + 1], False), ends)
        nest = whole.startswith(before) and whole.startswith(until)
        if not nest or not (spans[-1][1] if spans else 0) <= len(before) < len(until):
            raise chat.fault(
                position,
                "the chat template renders the turns up to this one otherwise when more follow, or when it "
                f"asks for it, as templates do that drop earlier reasoning or reorder turns; {INSTEAD}",
            )
        _check_holds(chat, position, whole[len(before) : len(until)])
        spans.append((len(before), len(until)))
    _check_order(chat, whole)
    return whole, spans


def _shared(whole: str, until: str, ends: tuple[str, ...]) -> str:
    """A prefix without the tokens at its end that are not the next of the whole."""
    while not whole.startswith(until):
        shorter = until.rstrip()
        end = next((end for end in ends if shorter.endswith(end)), "")
        if not end:
            break
        until = shorter.removesuffix(end)
    return until


def _check_holds(chat: Chat, position: int, text: str) -> None:
    """UserError for an answer that is not in the text that would be learned for it."""
    if _squeezed(chat.messages[position]["content"]) not in _squeezed(text):
        raise chat.fault(position, f"the chat template leaves out or changes a part of it; {INSTEAD}")


def _check_order(chat: Chat, text: str) -> None:
    """UserError for a message that the template leaves out, changes, or puts before an earlier one."""
    squeezed, place = _squeezed(text), 0
    for position, message in enumerate(chat.messages):
        content = _squeezed(message["content"])
        found = squeezed.find(content, place)
        if found < 0:
            raise chat.fault(position, f"the chat template leaves it out, changes or moves it; {INSTEAD}")
        place = found + len(content)


def _squeezed(text: str) -> str:
    """The text without white space, which templates trim."""
    return "".join(text.split())
