"""Knows what goes into and comes out of the dense model's blocks, one layer at a time; changes nothing.

Letters: R rows of text, S tokens of a row, T = R * S tokens, D hidden size.
"""

from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from moe_files import write_beside

ROWS_AT_ONCE = 8


class DenseStream:
    """The dense model's hidden states between two layers; the next layer is computed on demand."""

    def __init__(self, dense: Any, hidden_RSD: Tensor, layer: int):
        self.dense, self.hidden_RSD, self.layer = dense, hidden_RSD, layer

    @classmethod
    def begin(cls, dense: Any, rows_RS: Tensor) -> "DenseStream":
        """Before the first layer."""
        with torch.no_grad():
            return cls(dense, dense.model.embed_tokens(rows_RS), 0)

    @classmethod
    def resume(cls, dense: Any, path: Path) -> "DenseStream":
        """Where `save` left off."""
        with safe_open(path, "pt") as file:
            return cls(dense, file.get_tensor("hidden"), int(file.metadata()["layer"]))

    def save(self, path: Path) -> None:
        """Keeps the states and the number of the next layer in a file."""
        metadata = {"layer": str(self.layer)}
        write_beside(path, lambda beside: save_file({"hidden": self.hidden_RSD}, beside, metadata))

    @torch.no_grad()
    def advance(self) -> tuple[Tensor, Tensor]:
        """Passes one layer: what its feed-forward block read and what it gave, both [T, D] in float32."""
        layer = self.dense.model.layers[self.layer]
        seen: list[tuple[Tensor, Tensor]] = []
        hook = layer.mlp.register_forward_hook(lambda _, inputs, output: seen.append((inputs[0], output)))
        try:
            parts = [self._pass(layer, part) for part in self.hidden_RSD.split(ROWS_AT_ONCE)]
        finally:
            hook.remove()
        self.hidden_RSD = torch.cat(parts)
        self.layer += 1
        read, gave = (torch.cat(parts).flatten(0, 1).float() for parts in zip(*seen, strict=True))
        return read, gave

    def _pass(self, layer: Any, hidden_RSD: Tensor) -> Tensor:
        positions_1S = torch.arange(hidden_RSD.shape[1])[None]
        with torch.autocast("cpu", torch.bfloat16):
            rotary = self.dense.model.rotary_emb(hidden_RSD, positions_1S)
            return layer(hidden_RSD, position_ids=positions_1S, position_embeddings=rotary).float()
