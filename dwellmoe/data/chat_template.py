"""A model's own chat template, applied by its tokenizer."""

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from jinja2 import TemplateError

from dwellmoe.errors import UserError, first_line

REASONING_OFF: Mapping[str, Any] = {"enable_thinking": False}
"""For templates in which reasoning is an option; the others do not look at it."""
_MARK = re.compile(r"\{%-?\s*generation\s*-?%\}")
Messages = Sequence[Mapping[str, str]]
Span = tuple[int, int]


def beginning(tokenizer: Any) -> list[int]:
    """The tokens that this tokenizer puts before every text: `[BOS]` or none."""
    return [token for token in tokenizer("")["input_ids"] if token == tokenizer.bos_token_id]


def templated(
    messages: Messages, tokenizer: Any, reply: bool, options: Mapping[str, Any] = REASONING_OFF
) -> str:
    """Messages in the chat template; with `reply` ready for the next answer. `options` go to the template.

    Raises UserError where the template refuses them.
    """
    with _refusals(tokenizer):
        text = tokenizer.apply_chat_template(
            list(messages), tokenize=False, add_generation_prompt=reply, **options
        )
    return text[_own_beginning(text, tokenizer) :]


def has_marks(tokenizer: Any) -> bool:
    """Whether the template marks what the assistant writes, `{% generation %}`."""
    return _MARK.search(tokenizer.get_chat_template()) is not None


def marked(messages: Messages, tokenizer: Any) -> tuple[str, list[Span]]:
    """Messages in the chat template, and the parts of that text which it marks as the assistant's.

    The tokenizer's own mask of tokens (`return_assistant_tokens_mask`) comes from these parts, but ends early
    where a part begins with a character that no token begins with. Raises UserError as `templated` does.
    """
    from transformers.utils.chat_template_utils import render_jinja_template

    with _refusals(tokenizer):
        (text,), (spans,) = render_jinja_template(
            conversations=[[dict(message) for message in messages]],
            chat_template=tokenizer.get_chat_template(),
            return_assistant_tokens_mask=True,
            **tokenizer.special_tokens_map,
            **REASONING_OFF,
        )
    cut = _own_beginning(text, tokenizer)
    return text[cut:], [(int(start) - cut, int(stop) - cut) for start, stop in spans]


def _own_beginning(text: str, tokenizer: Any) -> int:
    """How many characters of a text are a BOS that the tokenizer puts before every text anyway."""
    begins = bool(tokenizer.bos_token) and text.startswith(tokenizer.bos_token) and beginning(tokenizer)
    return len(tokenizer.bos_token) if begins else 0


@contextmanager
def _refusals(tokenizer: Any) -> Iterator[None]:
    try:
        yield
    except (TemplateError, ValueError, TypeError) as error:
        raise UserError(f"the chat template of '{tokenizer.name_or_path}': {first_line(error)}") from None
