"""How important each prompt token is to a layer, as ODP measures it.

Letters: B rows, T tokens of a row, H heads, D hidden size.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from transformers import PreTrainedModel

from dwellmoe.errors import UserError
from dwellmoe.families import MoeLayer

EAGER = "eager"


class TokenImportance:
    """Reads attention and hidden states of one forward pass, between `start` and `stop`.

    The pass runs with eager attention, the only one that returns its weights. UserError for a model without
    attention beside its experts.
    """

    def __init__(self, model: nn.Module, moe_layers: Sequence[MoeLayer]):
        if missing := [layer.layer_id for layer in moe_layers if not layer.attention]:
            raise UserError(
                f"token importance needs attention in every MoE layer: layer {missing[0]} has none"
            )
        found = next((module for module in model.modules() if isinstance(module, PreTrainedModel)), None)
        assert found is not None, "a transformers model"
        self._model, self._root, self._layers = model, found, moe_layers
        self._handles: list[RemovableHandle] = []
        self._attention: dict[int, Tensor] = {}
        self._norms: dict[int, Tensor] = {}
        self._before = ""

    def start(self) -> None:
        self.stop()
        self._before = str(self._root.config._attn_implementation)
        self._root.set_attn_implementation(EAGER)
        for layer in self._layers:
            attention, block = (self._model.get_submodule(name) for name in (layer.attention, layer.block))
            self._handles.append(attention.register_forward_hook(self._keep_attention(layer.index)))
            self._handles.append(block.register_forward_pre_hook(self._keep_norm(layer.index)))

    def stop(self) -> None:
        while self._handles:
            self._handles.pop().remove()
        if self._before:
            self._root.set_attn_implementation(self._before)
            self._before = ""
        self._attention.clear()
        self._norms.clear()

    def of(self, layer: int, row: int, tokens: np.ndarray) -> np.ndarray:
        """float [tokens]: |h_j|_1 times the mean attention (over heads and later tokens) paid to token j."""
        attention_HTT = self._attention[layer][row][:, tokens][:, :, tokens]
        return importance(attention_HTT, self._norms[layer][row][tokens]).cpu().numpy()

    def _keep_attention(self, layer: int):
        def after(_module: nn.Module, _inputs: tuple, output: Any) -> None:
            weights = output[1] if isinstance(output, tuple) and len(output) > 1 else None
            if weights is None:
                raise UserError("token importance needs attention weights: this model's attention gives none")
            self._attention[layer] = weights.detach()

        return after

    def _keep_norm(self, layer: int):
        def before(_module: nn.Module, inputs: tuple) -> None:
            self._norms[layer] = inputs[0].detach().float().abs().sum(-1)

        return before


def importance(attention_HTT: Tensor, norms_T: Tensor) -> Tensor:
    """|h_j|_1 times the mean over heads and over tokens i > j of attention[i, j]; 0 for the last token."""
    paid_TT = attention_HTT.float().mean(0).tril(-1)
    later_T = torch.arange(len(norms_T) - 1, -1, -1, device=norms_T.device)
    return norms_T * paid_TT.sum(0) / later_T.clamp_min(1)
