"""`MoeLayer`: where the parts of one MoE layer sit. `MoeFamily`: how a family departs from the common shape.

Letters: L MoE layers, T tokens, E experts, K chosen experts a token.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

RouterTriple = tuple[Tensor, Tensor, Tensor]


@dataclass(frozen=True)
class MoeLayer:
    """Where the parts of one MoE layer sit: dotted names for `get_submodule` of the model they were found in.

    A name points at the module that the model itself calls: at a PEFT wrapper where there is one, and not at
    what it wraps, so that a hook there sees every call, with the adapter on and off.
    """

    index: int
    """0..L-1 among the MoE layers."""
    layer_id: int
    """Position of the decoder layer in the model."""
    block: str
    router: str
    experts: str
    attention: str
    """The token mixer beside the block; '' where the layer has none."""
    shared: tuple[str, ...]
    """Modules that every token passes besides its chosen experts; their gate is one of them."""
    num_experts: int
    top_k: int


def read_common(output: tuple, top_k: int) -> RouterTriple:
    """`(logits_TE, weights_TK, indices_TK)` of a router that returns these three first."""
    return output[0], output[1], output[2]


def write_common(output: tuple, weights_TK: Tensor, indices_TK: Tensor) -> tuple:
    """The router's output with another choice in it; the logits, and all behind the three, stay."""
    return output[0], weights_TK, indices_TK, *output[3:]


@dataclass(frozen=True)
class MoeFamily:
    """Where a family keeps its routers and experts, and how its router's output is laid out.

    The default is the common shape of transformers v5; only a family that departs from it needs an instance:
    registered with `dwellmoe.register_family`, or named `FAMILY` in a file of the folder `special`.
    """

    model_types: tuple[str, ...] = ()
    """`model_type` of the configurations it is for; none: the name under which it is registered."""
    router: tuple[str, ...] = ("gate", "router")
    """Names the router may have inside the block."""
    experts: str = "experts"
    shared: tuple[str, ...] = ()
    """Shared modules whose name does not begin with `shared`."""
    read: Callable[[tuple, int], RouterTriple] = read_common
    write: Callable[[tuple, Tensor, Tensor], tuple] = write_common
    lora_on_router: bool = True
    """False: a router is trained in full, since its own `forward` reads the matrix out of a module that it
    never calls, and LoRA acts only where a module is called."""


def unwrap(module: nn.Module) -> nn.Module:
    """The module inside PEFT's wrappers (ParamWrapper and LoRA layers, ModulesToSaveWrapper)."""
    while True:
        inner = module._modules.get("base_layer") or module._modules.get("original_module")
        if inner is None:
            return module
        module = inner


def shape_of(parameter: Tensor) -> tuple[int, ...]:
    """The whole shape of a parameter, also when ZeRO-3 left only a shard of it in place."""
    return tuple(getattr(parameter, "ds_shape", parameter.shape))


def expert_parameters(model: nn.Module, layer: MoeLayer) -> dict[str, nn.Parameter]:
    """The parameters of a layer's routed experts by name, [E, ...] each, biases included.

    Adapters do not count, nor parameters of the experts module that all experts share.
    """
    tensors = expert_tensors(unwrap(model.get_submodule(layer.experts)))
    return {name: weight for name, weight in tensors.items() if shape_of(weight)[:1] == (layer.num_experts,)}


def expert_tensors(experts: nn.Module) -> dict[str, Any]:
    """The parameters of an experts module by name, and the shapes that stand for those held elsewhere."""
    shapes = {name: found for name, found in vars(experts).items() if isinstance(found, Tensor)}
    return {**dict(experts.named_parameters(recurse=False)), **shapes}


HELD_BYTES = "held_bytes"
"""Attribute of an experts module whose matrices are held elsewhere, in low bits: their bytes an expert."""


def expert_bytes(model: nn.Module, layer: MoeLayer) -> int:
    """Bytes of one routed expert of a layer, its slice of `expert_parameters`, in the form it is held in."""
    held = getattr(unwrap(model.get_submodule(layer.experts)), HELD_BYTES, 0)
    weights = [each for each in expert_parameters(model, layer).values() if not (held and each.is_meta)]
    return held + sum(math.prod(shape_of(weight)[1:]) * weight.element_size() for weight in weights)
