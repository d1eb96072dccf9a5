"""Cached keys and values of attention that grow in place while tokens are generated.

transformers copies all of a layer's keys and values for every new token. Here memory for more positions is
reserved, and a token is written behind the others.

Letters: B rows, H heads, L positions, D head width.
"""

from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

RESERVED = 64
"""Positions, beside a quarter of those that there are."""


class GrowingLayer(DynamicLayer):
    """The same layer. Whatever else is done to its keys and values makes tensors that are copied once."""

    _room: tuple[Tensor, Tensor] | None = None
    """[B, H, more than L, D]: `keys` and `values` are the first L positions."""

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        one_token = key_states.shape[-2] == 1 and self.get_seq_length() > 0
        if not one_token or torch.is_grad_enabled():
            return super().update(key_states, value_states, *args, **kwargs)
        assert self.keys is not None and self.values is not None
        keys, values = self._room_for_one(self.keys, self.values)
        end = self.keys.shape[-2]
        keys[..., end : end + 1, :] = key_states
        values[..., end : end + 1, :] = value_states
        self.keys, self.values = keys[..., : end + 1, :], values[..., : end + 1, :]
        return self.keys, self.values

    def _room_for_one(self, *held: Tensor) -> tuple[Tensor, Tensor]:
        """Memory that begins with the held keys and values and has room behind them."""
        room = self._room
        if room is None or not all(_begins_with(*pair) for pair in zip(room, held, strict=True)):
            keys, values = map(_with_room, held)
            self._room = room = keys, values
        return room


def _begins_with(room: Tensor, held: Tensor) -> bool:
    same_place = room.data_ptr() == held.data_ptr() and room.stride() == held.stride()
    return same_place and room.shape[:2] == held.shape[:2] and room.shape[-2] > held.shape[-2]


def _with_room(held: Tensor) -> Tensor:
    length = held.shape[-2]
    with torch.inference_mode(False):  # memory made within that mode cannot be written outside of it
        room = held.new_empty(*held.shape[:-2], length + length // 4 + RESERVED, held.shape[-1])
    room[..., :length, :] = held
    return room


def grow_in_place(cache: Any) -> None:
    """Lets the layers of a cache that grow by copying grow in place from now on."""
    if isinstance(cache, DynamicCache):
        for layer in cache.layers:
            if type(layer) is DynamicLayer:
                layer.__class__ = GrowingLayer
