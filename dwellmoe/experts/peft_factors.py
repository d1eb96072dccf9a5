"""LoRA of experts read off PEFT's wrappers, whose own forward pass (the sum of weights and adapter for all
experts of a layer) is by-passed.

The wrappers stay PEFT's in all else: what is saved, loaded, merged, switched on and off.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from peft.tuners.lora import ParamWrapper
from torch import Tensor, nn

from dwellmoe.experts.low_rank import Factors
from dwellmoe.experts.weights import is_transposed

CARRIED = "lora_factors"
"""Attribute of an experts module during its forward pass: parameter -> factors of the active adapters."""


class PerExpertWrapper(ParamWrapper):
    """PEFT's wrapper of a fused parameter, which hands its factors to the experts that it wraps."""

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if self.disable_adapters or self.merged:
            return super().forward(x, *args, **kwargs)
        self._check_forward_args(x, *args, **kwargs)
        kwargs.pop("adapter_names", None)
        with _carried(self.get_base_layer(), self.parameter_name, active_factors(self)):
            return self.base_layer(x, *args, **kwargs)


PerExpertWrapper.__name__ = ParamWrapper.__name__  # by which PEFT knows its wrapper when it adds an adapter


@contextmanager
def _carried(experts: Any, name: str, factors: list[Factors]) -> Iterator[None]:
    found = experts.__dict__.setdefault(CARRIED, {})
    if factors:
        found[name] = factors
    try:
        yield
    finally:
        found.pop(name, None)


def carried(experts: Any) -> Mapping[str, list[Factors]]:
    """Within the forward pass of an experts module, the factors of each of its parameters."""
    return experts.__dict__.get(CARRIED, {})


def active_factors(wrapper: Any) -> list[Factors]:
    """The factors of each active adapter that a wrapper has."""
    return [factors_of(wrapper, name) for name in wrapper.active_adapters if name in wrapper.lora_A]


def factors_of(wrapper: Any, adapter: str) -> Factors:
    """The factors of one adapter of a wrapper.

    PEFT takes a parameter for [E, O, I] unless its module is `is_transposed`. Where it is [E, I, O] and the
    module does not say so (Llama 4), A lies on the output's side.
    """
    a, b = wrapper.lora_A[adapter].weight, wrapper.lora_B[adapter].weight
    experts = wrapper.num_experts
    a_ERI = a.reshape(experts, -1, a.shape[-1])
    b_ERO = b.reshape(b.shape[0], -1, experts).permute(2, 1, 0)
    if is_transposed(wrapper.get_base_layer()) == wrapper._did_swap_in_out_features:
        a_ERI, b_ERO = b_ERO, a_ERI
    return Factors(a_ERI, b_ERO, wrapper.scaling[adapter])


def bypass(wrapped: nn.Module) -> None:
    """From now on the nested wrappers of an experts module hand their factors down to it."""
    module: Any = wrapped
    while isinstance(module, ParamWrapper):
        if type(module) is ParamWrapper:
            module.__class__ = PerExpertWrapper
        module = module.base_layer
