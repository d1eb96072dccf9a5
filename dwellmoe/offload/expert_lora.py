"""LoRA of routed experts: moved out of a model that PEFT wrapped, and merged into an expert's weights when
they are read.

Letters: E experts, R rank, I and O the input and output width of a product.
"""

from collections.abc import Sequence
from typing import Any

from peft.tuners.lora import ParamWrapper
from torch import nn

from dwellmoe.errors import UserError
from dwellmoe.experts.low_rank import Factors
from dwellmoe.experts.peft_factors import factors_of
from dwellmoe.experts.weights import is_transposed
from dwellmoe.families import MoeLayer
from dwellmoe.families.base import unwrap
from dwellmoe.offload.slots import UP, Expert


class ExpertAdapters:
    """The factors of every adapter for the experts; `active` names the one to merge, None for none."""

    def __init__(self) -> None:
        self.active: str | None = None
        self._factors: dict[tuple[str, int, str], Factors] = {}
        self._transposed: dict[int, bool] = {}

    def add(self, layer: int, wrapper: Any) -> None:
        """Adds all adapters that a ParamWrapper holds for a fused parameter of a layer."""
        self._transposed[layer] = is_transposed(wrapper.get_base_layer())
        for name in wrapper.lora_A:
            a_ERI, b_ERO, scaling = factors_of(wrapper, name)
            found = Factors(a_ERI.detach(), b_ERO.detach(), scaling)
            self._factors[name, layer, wrapper.parameter_name] = found

    def merge(self, layer: int, expert: int, weights: Expert) -> None:
        """Adds the active adapter's part of one expert to its weights, in place."""
        if self.active is None:
            return
        for parameter, weight in ((UP[0], weights.up), (UP[1], weights.up), ("down_proj", weights.down)):
            factors = self._factors.get((self.active, layer, parameter))
            if factors is not None:
                delta_OI = factors.b_ERO[expert].T @ factors.a_ERI[expert] * factors.scaling
                delta = delta_OI.T if self._transposed[layer] else delta_OI
                weight += delta.to(weight.device, weight.dtype)


def take_expert_adapters(model: nn.Module, layers: Sequence[MoeLayer], adapters: ExpertAdapters) -> None:
    """Moves the LoRA of routed experts from PEFT's wrappers to `adapters` and removes the wrappers.

    layers  as found before PEFT wrapped the model

    Raises UserError for an adapter that trains experts in another way.
    """
    prefix = "base_model.model."
    for layer in layers:
        parent = model.get_submodule(prefix + layer.block)
        name = layer.experts.rpartition(".")[2]
        module: Any = parent.get_submodule(name)
        experts = unwrap(module)
        while module is not experts:
            if not isinstance(module, ParamWrapper):
                raise UserError(f"the adapter has whole experts ('{layer.experts}'): only LoRA can be merged")
            adapters.add(layer.index, module)
            module = module.base_layer
        setattr(parent, name, experts)
