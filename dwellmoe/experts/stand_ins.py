"""Experts whose matrices are held elsewhere: shapes stand in for their parameters.

A shape is a plain attribute of the module (meta device) and no parameter: wrappers that copy, cast or send
all parameters (DDP, DeepSpeed, `.to()`) would fail on it, or would make zeros of the size of the experts.
"""

from collections.abc import Container, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from dwellmoe.experts.weights import ATTRIBUTE
from dwellmoe.families import MoeLayer, find_moe_layers
from dwellmoe.families.base import expert_tensors, unwrap


def layers_held_elsewhere(model: nn.Module) -> list[MoeLayer]:
    """The MoE layers of a model whose experts carry their weights in another object than parameters."""
    if not any(hasattr(module, ATTRIBUTE) for module in model.modules()):
        return []
    layers = find_moe_layers(model)
    return [layer for layer in layers if hasattr(unwrap(model.get_submodule(layer.experts)), ATTRIBUTE)]


def drop_parameters(experts: nn.Module, names: Container[str]) -> None:
    """Puts shapes in the place of an experts module's parameters, in their order."""
    for name in [name for name, _ in experts.named_parameters(recurse=False) if name in names]:
        shape = torch.empty_like(getattr(experts, name), device="meta")
        delattr(experts, name)
        setattr(experts, name, shape)


@contextmanager
def weightless_experts(model: nn.Module, layers: Sequence[MoeLayer]) -> Iterator[None]:
    """Within the block the parameters of all experts are there, in their full shape on the model's device,
    but without memory, so that PEFT can wrap them. Afterwards all is as before.
    """
    device = next((weight.device for weight in model.parameters() if not weight.is_meta), torch.device("cpu"))
    modules = [unwrap(model.get_submodule(layer.experts)) for layer in layers]
    before = [expert_tensors(module) for module in modules]
    for module, tensors in zip(modules, before, strict=True):
        for name, tensor in tensors.items():
            empty = torch.zeros(1, dtype=tensor.dtype, device=device).expand(
                _full_shape(module, name, tensor)
            )
            _replace(module, name, nn.Parameter(empty, requires_grad=False))
    try:
        yield
    finally:
        for module, tensors in zip(modules, before, strict=True):
            for name, tensor in tensors.items():
                _replace(module, name, tensor)


def _full_shape(experts: Any, name: str, tensor: Tensor) -> tuple[int, ...]:
    """Where a loader left out experts that are never used, it noted the full shapes (`full_shapes`)."""
    return tuple(getattr(experts, "full_shapes", {}).get(name, tensor.shape))


def _replace(module: Any, name: str, tensor: Tensor) -> None:
    """Also where the one is a parameter and the other a plain attribute. PEFT names its wrappers by the order
    of the parameters, which deleting all of them in turn keeps.
    """
    delattr(module, name)
    setattr(module, name, tensor)
