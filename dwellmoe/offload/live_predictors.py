"""Predictors of expert use that need the running model: ScoutGate, the next layer's gate, and both together.

They have the methods of the predictors of cache/predictors/ and predict the running decode pass; for rows
that run together, the probability that any of them uses an expert. In a prompt they predict nothing (their
`horizon` is 0). Letters: L layers, E experts a layer, R rows, W tokens of ScoutGate's window.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from dwellmoe.cache.prediction import fuse
from dwellmoe.families import MoeLayer
from dwellmoe.offload.forward_pass import ForwardPass
from dwellmoe.routing.gate_ahead import GateAhead
from dwellmoe.routing.scoutgate import LastTokens, ScoutGate


class LiveScout:
    """ScoutGate on the token ids of a pass, for all layers at once when it begins; it learns nothing."""

    def __init__(self, gate: ScoutGate, forward_pass: ForwardPass) -> None:
        self.gate, self.tokens = gate, LastTokens()
        self.p_LE: np.ndarray | None = None
        forward_pass.listeners.append(self._pass_begins)

    def _pass_begins(self, forward_pass: ForwardPass) -> None:
        windows_RW = self.tokens.add(forward_pass.ids_BT, forward_pass.fresh)
        self.p_LE = None
        if windows_RW is not None and not forward_pass.prefill:
            with torch.inference_mode():
                p_RLE = self.gate(windows_RW.to(self.gate.bias.device)).sigmoid().double()
                self.p_LE = (1 - (1 - p_RLE).prod(dim=0)).cpu().numpy()

    @property
    def horizon(self) -> int:
        return 0 if self.p_LE is None else len(self.p_LE)

    def start(self) -> None: ...

    def predict(self, layer: int) -> np.ndarray:
        """float [E]; zeros where the token ids are unknown."""
        return np.zeros(self.gate.bias.shape[1]) if self.p_LE is None else self.p_LE[layer]

    def watch(self, layer: int, used_E: np.ndarray) -> None: ...


class LiveGateAhead:
    """The next layer's gate on this layer's hidden states.

    The gate ranks the experts; the probability of an expert is how often the expert of that rank was used
    so far, counted for each layer while the model decodes.
    """

    PSEUDOCOUNT = 8
    """Tokens counted in advance, half of which used each of the K experts of highest rank."""

    def __init__(self, model: Any, layers: Sequence[MoeLayer], forward_pass: ForwardPass) -> None:
        self._ahead = forward_pass.closing.enter_context(GateAhead(model, layers))
        self._forward_pass = forward_pass
        self._used_LE = np.zeros((len(layers), layers[0].num_experts))
        self._used_LE[:, : layers[0].top_k] = self.PSEUDOCOUNT / 2
        self._tokens_L = np.full(len(layers), float(self.PSEUDOCOUNT))

    @property
    def horizon(self) -> int:
        return 0 if self._forward_pass.prefill else 1

    def start(self) -> None: ...

    def predict(self, layer: int) -> np.ndarray:
        """float [E]: for the layer after the running one; zeros where its gate says nothing."""
        p_E, order_E = np.zeros(self._used_LE.shape[1]), self._order(layer)
        if order_E is not None:
            p_E[order_E] = self._used_LE[layer] / self._tokens_L[layer]
        return p_E

    def watch(self, layer: int, used_E: np.ndarray) -> None:
        order_E = self._order(layer) if self.horizon else None
        if order_E is not None:
            self._used_LE[layer] += used_E[order_E]
            self._tokens_L[layer] += 1

    def knows(self, layer: int) -> bool:
        """Whether the gate of a layer can be asked a layer early."""
        return self._ahead.margin_of(layer) is not None

    def _order(self, layer: int) -> np.ndarray | None:
        """int [E]: experts in the order of the gate, best first; None where it says nothing."""
        margin_TE = self._ahead.margin_of(layer)
        if margin_TE is None:
            return None
        margin_E = margin_TE.amax(dim=0)[: self._used_LE.shape[1]]
        return margin_E.argsort(descending=True, stable=True).cpu().numpy()


class FusedLive:
    """`scout` for all layers; for the next layer a mean of both, in which `scout` has weight `share`."""

    def __init__(self, gate: LiveGateAhead, scout: LiveScout, share: float) -> None:
        self.gate, self.scout, self.share = gate, scout, share
        self._running = 0

    @property
    def horizon(self) -> int:
        return max(self.scout.horizon, self.gate.horizon)

    def start(self) -> None: ...

    def predict(self, layer: int) -> np.ndarray:
        of_scout = self.scout.predict(layer)
        if layer > self._running + self.gate.horizon or not self.gate.knows(layer):
            return of_scout
        return fuse(self.gate.predict(layer), of_scout, self.share)

    def watch(self, layer: int, used_E: np.ndarray) -> None:
        self._running = layer
        self.gate.watch(layer, used_E)
