"""LoRA of routed experts: moved out of a model that PEFT wrapped, and merged into an expert's weights when
they are read.

Letters: E experts, R rank, I and O the input and output width of a matrix.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

from peft.tuners.lora import ParamWrapper
from torch import Tensor, nn

from dwellmoe.errors import UserError
from dwellmoe.families import MoeLayer
from dwellmoe.families.base import unwrap
from dwellmoe.offload.slots import UP, Expert


class Factors(NamedTuple):
    """One adapter of one fused parameter, as PEFT's ParamWrapper lays it out."""

    a_ERI: Tensor
    b_ORE: Tensor
    scaling: float
    transposed: bool
    """The experts' matrices are [I, O] instead of [O, I]."""


class ExpertAdapters:
    """The factors of every adapter for the experts; `active` names the one to merge, None for none."""

    def __init__(self) -> None:
        self.active: str | None = None
        self._factors: dict[tuple[str, int, str], Factors] = {}

    def add(self, layer: int, parameter: str, wrapper: Any) -> None:
        """Adds all adapters that a ParamWrapper holds for a fused parameter of a layer."""
        for name, a in wrapper.lora_A.items():
            experts, rank = wrapper.num_experts, wrapper.r[name]
            self._factors[name, layer, parameter] = Factors(
                a.weight.detach().reshape(experts, rank, -1),
                wrapper.lora_B[name].weight.detach().reshape(-1, rank, experts),
                wrapper.scaling[name],
                not wrapper._did_swap_in_out_features,
            )

    def merge(self, layer: int, expert: int, weights: Expert) -> None:
        """Adds the active adapter's part of one expert to its weights, in place."""
        if self.active is None:
            return
        for parameter, weight in ((UP[0], weights.up), (UP[1], weights.up), ("down_proj", weights.down)):
            factors = self._factors.get((self.active, layer, parameter))
            if factors is not None:
                weight += _delta(factors, expert).to(weight.device, weight.dtype)


def _delta(factors: Factors, expert: int) -> Tensor:
    delta_OI = factors.b_ORE[:, :, expert] @ factors.a_ERI[expert] * factors.scaling
    return delta_OI.T if factors.transposed else delta_OI


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
            adapters.add(layer.index, module.parameter_name, module)
            module = module.base_layer
        setattr(parent, name, experts)
