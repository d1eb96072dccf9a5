"""Re-routing of a model by the experts that its engine holds."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from dwellmoe.cache.trace import SIGNED_EMPTY
from dwellmoe.families import MoeLayer
from dwellmoe.offload.engine import Engine
from dwellmoe.routing import Rerouter, RouterOutput
from dwellmoe.routing.simulated_cache import PREFILL_LOADS, count_rows, new_tallies


class LiveRerouting:
    """A strategy for `RouterTap`: the choices that `SimulatedCache` simulates, by the engine's caches.

    An empty slot is returned as expert id E, which the engine skips. `tallies` are the counts of
    `SimulatedCache`, for requests that were described and ran one after the other. Raises UserError as
    `Rerouter` does.
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
        """Whether any choice may differ from the router's own."""
        return self.rerouter.spec != "none"

    def describe(self, requests: Sequence[int], _valid_BT: np.ndarray, _decode_BT: np.ndarray) -> None:
        """Names the requests whose tokens run from now on; the engine itself tells prefill from decode."""
        self._requests = requests

    def __call__(self, output: RouterOutput) -> tuple[Tensor, Tensor]:
        layer, rows = output.layer.index, self.rerouter.read(output)
        resident_E = self.engine.resident(layer)
        if not self.engine.in_prefill:
            chosen_TK = self.rerouter.choose(layer, rows, resident_E)
            self.rerouter.use(layer, chosen_TK)
            if self._requests:
                count_rows(self.tallies, layer, resident_E, chosen_TK, rows.own_TK, self._requests)
        else:
            chosen_TK = self.rerouter.prompt(layer, rows, resident_E if self.reroute_prefill else None)
            for request in self._requests[:1]:
                requested = np.unique(chosen_TK[chosen_TK != SIGNED_EMPTY])
                loads = len(requested) - self.engine.on_device(layer)[requested].sum()
                self.tallies[request][layer, PREFILL_LOADS] += loads
        weights_TK, indices_TK = self.rerouter.replace(output, chosen_TK)
        return weights_TK, torch.where(indices_TK < 0, output.layer.num_experts, indices_TK)
