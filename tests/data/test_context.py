"""Texts beyond the model's context are refused, or counted."""

from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dwellmoe.data.context import check_context, context_tokens
from dwellmoe.errors import UserError


def config(**fields):
    inner = SimpleNamespace(**fields)
    return SimpleNamespace(get_text_config=lambda: inner)


@pytest.mark.parametrize(
    ("fields", "tokens"),
    [
        ({"max_position_embeddings": 64}, 64),
        ({"max_seq_len": 32}, 32),
        ({"max_position_embeddings": None, "n_positions": 16}, 16),
        ({"max_position_embeddings": 0}, None),
        ({}, None),
    ],
)
def test_the_context_is_what_the_configuration_of_the_text_model_tells(fields, tokens):
    assert context_tokens(config(**fields)) == tokens


@given(st.lists(st.integers(1, 50)), st.none() | st.integers(1, 50))
def test_longer_texts_are_refused_or_counted(lengths, context):
    beyond = [length for length in lengths if context is not None and length > context]
    assert check_context("texts", lengths, context, allowed=True) == len(beyond)
    if beyond:
        with pytest.raises(
            UserError, match=f"texts: {len(beyond)} of {len(lengths)} .*--allow_beyond_context"
        ):
            check_context("texts", lengths, context, allowed=False)
    else:
        assert check_context("texts", lengths, context, allowed=False) == 0
