"""Knows what a MoE layer and a MoE family are; does not know how either is found in a model.

Letters: L MoE layers, T tokens, E experts, K chosen experts a token, D hidden size.
"""

from collections.abc import Callable
from dataclasses import dataclass

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
    """Number of the decoder layer."""
    block: str
    router: str
    experts: str
    attention: str
    """The token mixer beside the block; '' where the layer has none."""
    shared: tuple[str, ...]
    """Modules that every token passes beside its chosen experts, a gate of theirs included."""
    num_experts: int
    top_k: int


def read_common(output: tuple, top_k: int) -> RouterTriple:
    """`(logits_TE, weights_TK, indices_TK)` of a router that returns them in its first three places."""
    return output[0], output[1], output[2]


def write_common(output: tuple, weights_TK: Tensor, indices_TK: Tensor) -> tuple:
    """The router's output with another choice in it; logits and everything behind the triple stay."""
    return output[0], weights_TK, indices_TK, *output[3:]


@dataclass(frozen=True)
class MoeFamily:
    """Where a family keeps its routers and experts, and how its router's output is laid out.

    The default is the common shape of transformers v5; only a family that departs from it needs an instance
    named `FAMILY` in a file of this folder.
    """

    model_types: tuple[str, ...] = ()
    router: tuple[str, ...] = ("gate", "router")
    """Names the router may have inside the block."""
    experts: str = "experts"
    shared: tuple[str, ...] = ()
    """Shared modules whose name does not begin with `shared`."""
    read: Callable[[tuple, int], RouterTriple] = read_common
    write: Callable[[tuple, Tensor, Tensor], tuple] = write_common


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
