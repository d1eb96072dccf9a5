"""What a MoE block reads and what it should give, one layer after the other.

Two passes of the same text run side by side, one through the dense model, one through the MoE as far as it is
made. A block should give what brings its own model's hidden states to the dense one's: its dense block's
output, and the errors of the blocks before it.

Letters: R rows of text, S tokens of a row, T = R * S tokens, D hidden size.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from dwellmoe.files import replacing_path

ROWS_AT_ONCE = 8


class TwinStream:
    """The hidden states of both models between two layers; the next layer is computed on demand."""

    def __init__(self, dense: Any, moe: Any, dense_RSD: Tensor, moe_RSD: Tensor, layer: int):
        self.dense, self.moe, self.layer = dense, moe, layer
        self.dense_RSD, self.moe_RSD = dense_RSD, moe_RSD

    @classmethod
    def begin(cls, dense: Any, moe: Any, rows_RS: Tensor) -> "TwinStream":
        """Before the first layer."""
        with torch.no_grad():
            hidden_RSD = dense.model.embed_tokens(rows_RS)
        return cls(dense, moe, hidden_RSD, hidden_RSD, 0)

    @classmethod
    def resume(cls, dense: Any, moe: Any, path: Path) -> "TwinStream":
        """Where `save` left off."""
        with safe_open(path, "pt") as file:
            states = file.get_tensor("dense"), file.get_tensor("moe")
            return cls(dense, moe, *states, int(file.metadata()["layer"]))

    def save(self, path: Path) -> None:
        """Keeps the states and the number of the next layer in a file."""
        states = {"dense": self.dense_RSD, "moe": self.moe_RSD.clone()}
        metadata = {"layer": str(self.layer)}
        with replacing_path(path) as beside:
            save_file(states, beside, metadata)

    def advance(self, make: Callable[[Tensor, Tensor], Any]) -> None:
        """Moves both passes through one layer.

        `make` gets what the layer's MoE block reads and what it should give, both [T, D] in float32; when it
        returns, the block must be ready.
        """
        dense_layer, layer = (each.model.layers[self.layer] for each in (self.dense, self.moe))
        dense_RSD = self._in_parts(self._whole_layer, dense_layer, self.dense_RSD)
        between_RSD = self._in_parts(self._attention, layer, self.moe_RSD)
        read_RSD = self._in_parts(self._norm, layer, between_RSD)
        make(read_RSD.flatten(0, 1), (dense_RSD - between_RSD).flatten(0, 1))
        given_RSD = self._in_parts(self._block, layer, read_RSD)
        self.dense_RSD, self.moe_RSD = dense_RSD, between_RSD + given_RSD
        self.layer += 1

    @torch.no_grad()
    def _in_parts(self, function: Callable, layer: Any, hidden_RSD: Tensor) -> Tensor:
        positions_1S = torch.arange(hidden_RSD.shape[1])[None]
        with torch.autocast("cpu", torch.bfloat16):
            rotary = self.dense.model.rotary_emb(hidden_RSD, positions_1S)
            parts = [function(layer, part, rotary).float() for part in hidden_RSD.split(ROWS_AT_ONCE)]
        return torch.cat(parts)

    @staticmethod
    def _whole_layer(layer: Any, hidden_RSD: Tensor, rotary: Any) -> Tensor:
        return layer(hidden_RSD, position_embeddings=rotary)

    @staticmethod
    def _attention(layer: Any, hidden_RSD: Tensor, rotary: Any) -> Tensor:
        seen = layer.input_layernorm(hidden_RSD)
        return hidden_RSD + layer.self_attn(seen, position_embeddings=rotary, attention_mask=None)[0]

    @staticmethod
    def _norm(layer: Any, hidden_RSD: Tensor, rotary: Any) -> Tensor:
        return layer.post_attention_layernorm(hidden_RSD)

    @staticmethod
    def _block(layer: Any, read_RSD: Tensor, rotary: Any) -> Tensor:
        return layer.mlp(read_RSD)
