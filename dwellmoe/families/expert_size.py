"""Knows how many bytes one routed expert of a layer takes; does not know where experts are kept."""

import math

from torch import nn

from dwellmoe.families.base import MoeLayer, shape_of, unwrap


def expert_bytes(model: nn.Module, layer: MoeLayer) -> int:
    """Bytes of one expert of this layer, biases included, in the type its weights are held in."""
    weights = unwrap(model.get_submodule(layer.experts)).parameters(recurse=False)
    return sum(math.prod(shape_of(weight)[1:]) * weight.element_size() for weight in weights)
