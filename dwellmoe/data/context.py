"""The positions that a model was made for, and what goes beyond them: refused, or said."""

from collections.abc import Sequence
from typing import Any

from dwellmoe.errors import UserError
from dwellmoe.log import warn_once

NAMES = ("max_position_embeddings", "n_positions", "max_seq_len", "max_sequence_length")
"""Of the number of positions in the configurations of transformers' families."""


def context_tokens(config: Any) -> int | None:
    """The positions that a model was made for; None where its configuration does not tell."""
    text_config = config.get_text_config()
    found = (getattr(text_config, name, None) for name in NAMES)
    return next((tokens for tokens in found if isinstance(tokens, int) and tokens > 0), None)


def beyond_context(lengths: Sequence[int], context: int | None) -> int:
    """How many of the texts, by their tokens, do not fit."""
    return 0 if context is None else sum(length > context for length in lengths)


def check_context(what: str, lengths: Sequence[int], context: int | None, allowed: bool) -> int:
    """How many texts go beyond the context, said in one line. Raises UserError for any, unless `allowed`."""
    if not (beyond := beyond_context(lengths, context)):
        return 0
    fault = (
        f"{what}: {beyond} of {len(lengths)} go beyond the model's context of {context} positions, the "
        f"longest with {max(lengths)} tokens"
    )
    if not allowed:
        raise UserError(
            f"{fault}: shorten them with --max_words_len (or --max_new_tokens), or run them as they are with "
            "--allow_beyond_context True"
        )
    warn_once(fault)
    return beyond
