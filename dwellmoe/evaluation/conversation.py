"""A conversation as the prompt of its next reply, in the wording that the model was trained in."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from dwellmoe.data.context import check_context, context_tokens
from dwellmoe.data.wording import Wording, conversation_prompt
from dwellmoe.errors import UserError
from dwellmoe.evaluation.evaluated_model import EvaluatedModel
from dwellmoe.evaluation.options import Options
from dwellmoe.evaluation.requests import prompt_ids
from dwellmoe.evaluation.wording import own_wording, question_text


class Room(NamedTuple):
    """The most tokens of a prompt, and where that number comes from."""

    tokens: int
    reason: str


class Asked(NamedTuple):
    """The tokens of a prompt, and how many of the oldest messages it had to leave out."""

    ids: list[int]
    left_out: int


@dataclass
class Conversation:
    """The messages so far: the user's, as they are worded, and the replies, one after the other."""

    tokenizer: Any
    wording: Wording
    room: Room | None = None
    reply_tokens: int = 0
    """The most tokens of a reply."""
    exceeded_context: int | None = None
    """The model's context, where prompts may go beyond it."""
    messages: list[str] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)
    """Those of the last prompt, which has no reply yet."""

    def ask(self, message: str) -> Asked:
        """The prompt that ends with this message; one that cannot be asked is no part of the conversation.

        Raises UserError for that.
        """
        earlier = [] if self.wording.one_by_one else self.messages
        if not self.wording.of_conversations:
            message = question_text(self.wording, message, must_fit=False)
        messages = [*earlier, message]
        while self.room and len(self._ids(messages)) > self.room.tokens:
            if len(messages) == 1:
                raise UserError(f"the message has {len(self._ids(messages))} tokens, {self.room.reason}")
            messages = messages[2:]
        ids = self._ids(messages)
        length = len(ids) + self.reply_tokens - 1
        check_context("the conversation with its reply", [length], self.exceeded_context, allowed=True)
        left_out = len(earlier) + 1 - len(messages)
        self.asked = messages
        return Asked(ids, left_out)

    def add_reply(self, text: str) -> None:
        """Adds the message that was asked last, and the reply to it."""
        self.messages = [*self.asked, text.strip()]

    def _ids(self, messages: Sequence[str]) -> list[int]:
        text = self._text(messages)
        return prompt_ids(self.tokenizer, text, max_tokens=None).ids

    def _text(self, messages: Sequence[str]) -> str:
        roles = [("user", "assistant")[number % 2] for number in range(len(messages))]
        with_roles = [{"role": role, "content": text} for role, text in zip(roles, messages, strict=True)]
        return conversation_prompt(self.wording, with_roles, self.tokenizer)


def conversation_of(options: Options, evaluated: EvaluatedModel, reply_tokens: int) -> Conversation:
    """An empty conversation by the options of a chat. Raises UserError where they leave no room for it."""
    context = context_tokens(evaluated.model.config)
    rooms = []
    if context and not options.data.allow_beyond_context:
        room = context - reply_tokens + 1
        reason = f"with a reply of --max_new_tokens {reply_tokens} the model's context of {context} has room"
        rooms.append(Room(room, f"{reason} for {max(0, room)} (--allow_beyond_context exceeds it)"))
    if "max_words_len" in options.given:
        most = options.data.max_words_len
        rooms.append(Room(most, f"--max_words_len allows {most}"))
    room = min(rooms, default=None)
    if room and room.tokens < 1:
        raise UserError(f"no room for a message: {room.reason}")
    return Conversation(
        evaluated.tokenizer,
        own_wording(options, evaluated.tokenizer),
        room=room,
        reply_tokens=reply_tokens,
        exceeded_context=context if options.data.allow_beyond_context else None,
    )
