"""Predictors of use that ask the model while it runs; does not know what is done with what they say.

They are predictors as those of `expert_cache/predictors/`, of the decode pass under way; of rows that run
together they say that any of them uses an expert. Prompts they leave alone (`reach` 0).
Letters: T tokens, L layers, E experts a layer.
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
    """ScoutGate on the token ids of the pass, all layers at once when it begins; learns nothing."""

    def __init__(self, gate: ScoutGate, forward_pass: ForwardPass) -> None:
        self.gate, self.tokens = gate, LastTokens()
        self.said_LE: np.ndarray | None = None
        forward_pass.listeners.append(self._pass_begins)

    def _pass_begins(self, forward_pass: ForwardPass) -> None:
        windows_RW = self.tokens.add(forward_pass.ids_BT, forward_pass.fresh)
        self.said_LE = None
        if windows_RW is not None and not forward_pass.prefill:
            with torch.inference_mode():
                p_RLE = self.gate(windows_RW.to(self.gate.bias.device)).sigmoid().double()
                self.said_LE = (1 - (1 - p_RLE).prod(dim=0)).cpu().numpy()

    @property
    def reach(self) -> int:
        return 0 if self.said_LE is None else len(self.said_LE)

    def start(self) -> None: ...

    def predict(self, layer: int) -> np.ndarray:
        """Zeros where it was not told the tokens' ids."""
        return np.zeros(self.gate.bias.shape[1]) if self.said_LE is None else self.said_LE[layer]

    def watch(self, layer: int, used_E: np.ndarray) -> None: ...


class LiveGateAhead:
    """The next layer's gate on this layer's hidden states: an expert is as likely as those before it that
    stood in its place of the gate's order were used, counted a layer at a time while the model decodes.
    """

    DOUBT = 8
    """Tokens in which, before any was seen, half of the K first are taken to have been used."""

    def __init__(self, model: Any, layers: Sequence[MoeLayer], forward_pass: ForwardPass) -> None:
        self._ahead = forward_pass.closing.enter_context(GateAhead(model, layers))
        self._forward_pass = forward_pass
        self._used_LE = np.zeros((len(layers), layers[0].num_experts))
        self._used_LE[:, : layers[0].top_k] = self.DOUBT / 2
        self._tokens_L = np.full(len(layers), float(self.DOUBT))

    @property
    def reach(self) -> int:
        return 0 if self._forward_pass.prefill else 1

    def start(self) -> None: ...

    def predict(self, layer: int) -> np.ndarray:
        """Of the layer after the one that runs; never of the first."""
        said_E = np.empty(self._used_LE.shape[1])
        said_E[self._order(layer)] = self._used_LE[layer] / self._tokens_L[layer]
        return said_E

    def watch(self, layer: int, used_E: np.ndarray) -> None:
        if layer and self.reach:
            self._used_LE[layer] += used_E[self._order(layer)]
            self._tokens_L[layer] += 1

    def _order(self, layer: int) -> np.ndarray:
        """[E]: experts as the gate ranks them, best first."""
        return self._ahead.margin_of(layer).amax(dim=0).argsort(descending=True, stable=True).cpu().numpy()


class FusedLive:
    """`scout`, and of the next layer a share of it with `gate`."""

    def __init__(self, gate: LiveGateAhead, scout: LiveScout, share: float) -> None:
        self.gate, self.scout, self.share = gate, scout, share
        self._running = 0

    @property
    def reach(self) -> int:
        return max(self.scout.reach, self.gate.reach)

    def start(self) -> None: ...

    def predict(self, layer: int) -> np.ndarray:
        of_scout = self.scout.predict(layer)
        if layer > self._running + self.gate.reach:
            return of_scout
        return fuse(self.gate.predict(layer), of_scout, self.share)

    def watch(self, layer: int, used_E: np.ndarray) -> None:
        self._running = layer
        self.gate.watch(layer, used_E)
