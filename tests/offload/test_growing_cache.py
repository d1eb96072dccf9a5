"""Keys and values that grow in place are those that transformers would have copied."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from transformers import DynamicCache

from dwellmoe.offload.growing_cache import RESERVED, GrowingLayer, grow_in_place
from tests.offload.workbench import engine_of, prompt


def _states(tokens: int, rows: int = 2) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(rows, 3, tokens, 4), torch.randn(rows, 3, tokens, 4)


def _update(tokens: int, rows: int = 2) -> Callable[[Any], object]:
    states = _states(tokens, rows)
    return lambda cache: cache.update(*states, 0)


def _same(one: Any, other: Any) -> None:
    for layer, usual in zip(one.layers, other.layers, strict=True):
        assert torch.equal(layer.keys, usual.keys) and torch.equal(layer.values, usual.values)


@torch.no_grad()
def test_any_use_of_a_cache():
    """More tokens than are reserved, several at once, cut off, rows chosen, begun anew."""
    found: Any = DynamicCache()
    usual: Any = DynamicCache()
    uses: list[Callable[[Any], object]] = [
        *[_update(tokens) for tokens in (5, 1, 1, 3)],
        *[_update(1) for _ in range(RESERVED + 9)],
        lambda cache: cache.crop(-4),
        *[_update(1) for _ in range(3)],
        lambda cache: cache.reorder_cache(torch.tensor([1, 0])),
        *[_update(1) for _ in range(3)],
        lambda cache: cache.batch_select_indices(torch.tensor([1])),
        *[_update(1, rows=1) for _ in range(2)],
        lambda cache: cache.reset(),
        *[_update(tokens) for tokens in (2, 1)],
    ]
    for use in uses:
        grow_in_place(found)
        use(found)
        use(usual)
        if usual.layers[0].keys is not None:
            _same(found, usual)
    assert type(found.layers[0]) is GrowingLayer


@torch.no_grad()
def test_a_token_is_written_behind_the_others():
    cache = DynamicCache()
    cache.update(*_states(4), 0)
    grow_in_place(cache)
    places = []
    for _ in range(3):
        keys, _ = cache.update(*_states(1), 0)
        places.append(keys.data_ptr())
    assert len(set(places)) == 1


def test_with_gradients_and_in_both_modes():
    cache = DynamicCache()
    cache.update(*_states(4), 0)
    grow_in_place(cache)
    keys, values = (each.requires_grad_() for each in _states(1))
    keys, _ = cache.update(keys, values, 0)
    assert keys.requires_grad
    cache = DynamicCache()
    with torch.inference_mode():
        cache.update(*_states(4), 0)
        grow_in_place(cache)
        cache.update(*_states(1), 0)
    with torch.no_grad():
        assert cache.update(*_states(1), 0)[0].shape[2] == 6


@pytest.mark.parametrize("family", ["olmoe", "deepseek_v2", "gpt_oss"])
def test_generated_tokens_are_the_same(family, monkeypatch):
    ids = prompt(9)
    options = {"max_new_tokens": 20, "do_sample": False}
    model, engine = engine_of(family)
    with engine:
        found = model.generate(ids, **options)
        monkeypatch.setattr("dwellmoe.offload.forward_pass.grow_in_place", lambda cache: None)
        assert torch.equal(found, model.generate(ids, **options))
