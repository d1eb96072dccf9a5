"""An observer of routers that keeps one forward pass, with gradients, as dense tensors; computes nothing.

Letters: L layers, B rows, T tokens a row, E experts, K chosen experts a token.
"""

import torch
from torch import Tensor

from dwellmoe.routing import RouterOutput


class GateRecorder:
    """Collects what each router said during one forward pass of a [B, T] batch."""

    def __init__(self, batch: int, tokens: int):
        self._shape = (batch, tokens)
        self._outputs: list[RouterOutput] = []

    def __call__(self, output: RouterOutput) -> None:
        self._outputs.append(output)

    def logits(self, layers: set[int] | None = None) -> Tensor:
        """[L, B, T, E] raw gate logits with gradient; of the MoE layers with these indices, or of all."""
        return self._stack("logits_TE", layers)

    def chosen(self, layers: set[int] | None = None) -> Tensor:
        """[L, B, T, K] experts that ran, in router order; -1: a slot that was left empty."""
        return self._stack("indices_TK", layers)

    def _stack(self, name: str, layers: set[int] | None) -> Tensor:
        outputs = [output for output in self._outputs if layers is None or output.layer.index in layers]
        return torch.stack([getattr(output, name).unflatten(0, self._shape) for output in outputs])
