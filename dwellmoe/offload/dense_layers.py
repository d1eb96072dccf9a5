"""The linear layers of a model that every token passes, in low bits or computed faster: attention, dense and
shared MLPs, output layer. Routers, norms, embeddings and narrow gates stay as they are.
"""

from collections.abc import Iterator, Sequence
from typing import Any

from torch import nn

from dwellmoe.errors import UserError
from dwellmoe.experts.formats.base import QuantisingFormat
from dwellmoe.experts.kernels.one_row import is_one_row
from dwellmoe.experts.low_bit_linear import hold_in_low_bits
from dwellmoe.experts.one_row_linear import OneRowWeight, take_single_rows
from dwellmoe.families import MoeLayer
from dwellmoe.offload.io.memory import give_back_what_is_free, on_huge_pages

NARROW = 16
"""A layer of fewer outputs is a gate, of which low bits would save nothing."""


def hold_dense_layers(model: Any, layers: Sequence[MoeLayer], format: QuantisingFormat) -> None:
    """Replaces the layers one by one, so that beside the model there is never more than one more in memory.

    An output layer that shares its matrix with the embedding gets low bits of its own.

    Raises UserError where there is no such layer, and for weights that are not finite.
    """
    names = [*_dense_layers(model, {layer.router for layer in layers})]
    if not names:
        raise UserError(
            f"--dense_format {format.name}: {type(model).__name__} computes without linear layers of torch"
        )
    for name in names:
        parent, _, leaf = name.rpartition(".")
        layer: Any = model.get_submodule(name)
        try:
            held = hold_in_low_bits(layer, format)
        except ValueError as error:
            raise UserError(f"--dense_format {format.name}: '{name}': {error}") from None
        held.stored = {field: on_huge_pages(tensor) for field, tensor in held.stored.items()}
        setattr(model.get_submodule(parent), leaf, held)
    give_back_what_is_free()


def speed_up_single_rows(model: Any, layers: Sequence[MoeLayer]) -> None:
    """Lets a token by itself pass the layers of a model in bfloat16 on the CPU by compiled passes."""
    for name in _dense_layers(model, {layer.router for layer in layers}):
        layer: Any = model.get_submodule(name)
        if is_one_row(layer.weight[:1]):
            layer.weight.data = on_huge_pages(layer.weight.data)
            take_single_rows(layer)


def speed_up_routers(model: Any, layers: Sequence[MoeLayer]) -> None:
    """The same for the routers, which multiply by themselves."""
    for layer in layers:
        for module in model.get_submodule(layer.router).modules():
            for name, weight in [*module.named_parameters(recurse=False)]:
                if type(weight) is nn.Parameter and weight.dim() == 2 and is_one_row(weight[:1]):
                    setattr(module, name, OneRowWeight(weight.data, weight.requires_grad))


def _dense_layers(model: Any, routers: set[str]) -> Iterator[str]:
    decoder, output = model.get_decoder(), model.get_output_embeddings()
    within = {id(module) for module in decoder.modules()}
    for name, module in model.named_modules():
        if type(module) is not nn.Linear or module.out_features < NARROW or module.weight.is_meta:
            continue
        of_text = module is output or id(module) in within
        if of_text and not any(name == router or name.startswith(f"{router}.") for router in routers):
            yield name
