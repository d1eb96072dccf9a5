"""Knows how a model behind an engine is re-routed by what the engine truly holds; moves nothing."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from models import MoeLayer
from offload.engine import Engine
from routing import Rerouter, RouterOutput


class LiveRerouting:
    """A strategy for `RouterTap`: the choices that `routing.VirtualCache` simulates, with true residency.

    An empty slot is returned as the id behind the last expert, which the engine takes for nobody.
    Raises UserError as `Rerouter` does.
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

    def __call__(self, output: RouterOutput) -> tuple[Tensor, Tensor]:
        layer, rows = output.layer.index, self.rerouter.read(output)
        resident_E = self.engine.live.split.cache.resident(layer)
        if not self.engine.cached_experts.forward_pass.prefill:
            chosen_TK = self.rerouter.choose(layer, rows, resident_E)
            self.rerouter.use(layer, chosen_TK)
        else:
            chosen_TK = self.rerouter.prompt(layer, rows, resident_E if self.reroute_prefill else None)
        weights_TK, indices_TK = self.rerouter.replace(output, chosen_TK)
        return weights_TK, torch.where(indices_TK < 0, output.layer.num_experts, indices_TK)
