"""Knows how a model behind an engine is re-routed by what the engine truly holds; moves nothing."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from dwellmoe.families import MoeLayer
from dwellmoe.offload.engine import Engine
from dwellmoe.routing import Rerouter, RouterOutput
from dwellmoe.routing.simulated_cache import PREFILL_LOADS, count_rows, new_tallies
from dwellmoe.routing.strategies.base import EMPTY


class LiveRerouting:
    """A strategy for `RouterTap`: the choices that `routing.SimulatedCache` simulates, with true residency.

    An empty slot is returned as the id behind the last expert, which the engine takes for nobody. `tallies`
    hold what `SimulatedCache` counts of requests that were described and ran one after the other. Raises
    UserError as `Rerouter` does.
    """

    def __init__(
        self,
        model: nn.Module,
        moe_layers: Sequence[MoeLayer],
        engine: Engine,
        spec: str,
        reroute_prefill: bool = False,
    ):
        self.rerouter = Rerouter(model, moe_layers, spec)
        self.engine, self.reroute_prefill = engine, reroute_prefill
        self.tallies = new_tallies(len(moe_layers))
        self._requests: Sequence[int] = ()

    @property
    def reroutes(self) -> bool:
        """Whether any choice may be another than the router's own."""
        return self.rerouter.spec != "none"

    def describe(self, requests: Sequence[int], _valid_BT: np.ndarray, _decode_BT: np.ndarray) -> None:
        """Whose tokens run from now on; the engine knows itself which of them are decoded."""
        self._requests = requests

    def __call__(self, output: RouterOutput) -> tuple[Tensor, Tensor]:
        layer, rows = output.layer.index, self.rerouter.read(output)
        resident_E = self.engine.live.split.cache.resident(layer)
        if not self.engine.cached_experts.forward_pass.prefill:
            chosen_TK = self.rerouter.choose(layer, rows, resident_E)
            self.rerouter.use(layer, chosen_TK)
            if self._requests:
                count_rows(self.tallies, layer, resident_E, chosen_TK, rows.own_TK, self._requests)
        else:
            chosen_TK = self.rerouter.prompt(layer, rows, resident_E if self.reroute_prefill else None)
            for request in self._requests[:1]:
                asked = np.unique(chosen_TK[chosen_TK != EMPTY])
                loads = len(asked) - self.engine.live.on_device(layer)[asked].sum()
                self.tallies[request][layer, PREFILL_LOADS] += loads
        weights_TK, indices_TK = self.rerouter.replace(output, chosen_TK)
        return weights_TK, torch.where(indices_TK < 0, output.layer.num_experts, indices_TK)
