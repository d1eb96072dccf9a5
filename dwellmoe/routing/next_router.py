"""Asks a router what it would choose, given what the router of the layer before it was given.

Routers of some families take more than hidden states: a bias of their block (AFMoE, HunYuan-V3, LFM2-MoE,
MiniMax-M2), token ids (DeepSeek-V4), what the router before them made (ZAYA).
"""

from collections.abc import Sequence
from inspect import signature
from typing import Any

import torch
from torch import Tensor, nn

from dwellmoe.errors import first_line
from dwellmoe.families import MoeLayer, family_of
from dwellmoe.families.base import RouterTriple, unwrap
from dwellmoe.log import warn_once


class NextRouter:
    """The router of a MoE layer, called with the inputs of the router before it.

    Of the inputs beyond hidden states, the layer's own block provides those that it has under the parameter's
    name; others are what the router before was given. `forward` is called directly, so no hook sees the call.
    A router that cannot be called so has no answer, which is said once.
    """

    def __init__(self, model: nn.Module, before: MoeLayer, layer: MoeLayer) -> None:
        self.layer, self._model = layer, model
        self._block = model.get_submodule(layer.block)
        self._read = family_of(model).read
        self._given = _parameters(model.get_submodule(before.router))
        self._taken = _parameters(model.get_submodule(layer.router))
        self.fault = ""
        """Why it cannot be asked."""

    def __call__(self, inputs: Sequence[Any], named: dict[str, Any]) -> RouterTriple | None:
        """Logits, weights and indices, from the positional and named inputs of the router before."""
        if self.fault:
            return None
        try:
            with torch.no_grad():
                hidden, others = self._inputs(inputs, named)
                router: Any = self._model.get_submodule(self.layer.router)  # an adapter may have come since
                return self._read(router.forward(hidden, **others), self.layer.top_k)
        except Exception as error:  # of any kind: a prediction is never worth the run
            self.fault = f"router '{self.layer.router}' cannot be asked a layer early ({first_line(error)})"
            warn_once(f"warning: {self.fault}: its experts are not predicted by it")
            return None

    def _inputs(self, inputs: Sequence[Any], named: dict[str, Any]) -> tuple[Tensor, dict[str, Any]]:
        """Hidden states, and by name what the router takes beyond them; defaults are left out."""
        given = dict(zip(self._given, inputs, strict=False)) | named
        others = {name: getattr(self._block, name, given.get(name)) for name in self._taken[1:]}
        known = {name: value for name, value in others.items() if value is not None or name in given}
        return given[self._given[0]], known


def _parameters(router: nn.Module) -> list[str]:
    """Names of what a router takes, hidden states first."""
    return list(signature(unwrap(router).forward).parameters)
