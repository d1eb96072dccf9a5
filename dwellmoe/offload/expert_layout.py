"""How an expert lies in memory: where its tensors begin, which of its matrices are in low bits, and in what
order the checkpoint has their numbers.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from dwellmoe.errors import UserError, first_line
from dwellmoe.experts.formats.base import ExpertFormat, Stored
from dwellmoe.experts.weights import shape_OI_of
from dwellmoe.families import MoeLayer
from dwellmoe.families.base import unwrap
from dwellmoe.offload.expert_weights import AS_IN_MODEL, INTERLEAVED, TRANSPOSED, ExpertWeights, Part, aligned

UP = ("gate_up_proj", "up_proj")
UP_BIAS = ("gate_up_proj_bias", "up_proj_bias")
NAMES = (*UP, *UP_BIAS, "down_proj", "down_proj_bias")


class LowBitMatrix(NamedTuple):
    """One matrix of an expert in the bytes that hold it."""

    format: ExpertFormat
    stored: Stored
    shape_OI: tuple[int, int]

    def product(self, x_SI: Tensor) -> Tensor:
        """Each row times the matrix, [S, O]."""
        return self.format.product(x_SI, self.stored, self.shape_OI)

    def gradient(self, gradient_SO: Tensor) -> Tensor:
        """The gradient of the rows, [S, I], from that of `product`."""
        return self.format.gradient(gradient_SO, self.stored, self.shape_OI)

    def dequantised(self, dtype: torch.dtype) -> Tensor:
        """The matrix, [O, I]."""
        return self.format.dequantise(self.stored, self.shape_OI, dtype)

    def to(self, device: torch.device) -> "LowBitMatrix":
        """The same on a device."""
        return self._replace(stored={field: each.to(device) for field, each in self.stored.items()})


Matrix = Tensor | LowBitMatrix


def plain(matrix: Matrix) -> Tensor:
    """The numbers of a matrix, those in low bits as bfloat16, which holds the largest of them."""
    return matrix.dequantised(torch.bfloat16) if isinstance(matrix, LowBitMatrix) else matrix


class Expert(NamedTuple):
    """The weights of one expert, as its module would slice them; the first is gate and up, or up alone."""

    up: Matrix
    down: Matrix
    up_bias: Tensor | None = None
    down_bias: Tensor | None = None


class ExpertLayout(NamedTuple):
    """Where the tensors of an expert of one layer begin in its record, or in its slot."""

    parts: tuple[Part, ...]
    nbytes: int
    formats: Mapping[str, ExpertFormat]
    """Of the matrices in low bits, by the parameter that they are a slice of."""
    shapes_OI: Mapping[str, tuple[int, int]]
    """Of all matrices."""

    @property
    def itemsize(self) -> int:
        """The expert may begin at any multiple of it."""
        return max(part.dtype.itemsize for part in self.parts)

    def with_plain_weights_in(self, dtype: torch.dtype) -> "ExpertLayout":
        """The same tensors, those of 16 and 32 bits in the type that is computed in; low bits stay as they
        are stored.
        """
        if all(part.field or part.dtype == dtype for part in self.parts):
            return self
        parts: list[Part] = []
        end = 0
        for part in self.parts:
            kind = part.dtype if part.field else dtype
            parts.append(part._replace(dtype=kind, begin=aligned(end, kind)))
            end = parts[-1].begin + parts[-1].nbytes
        return self._replace(parts=tuple(parts), nbytes=end)

    def expert(self, memory: Tensor, begin: int) -> Expert:
        """The expert whose first byte is `memory[begin]`, as views of the memory (uint8)."""
        found = self._tensors(memory, begin)
        named = {name: self._weight(name, tensors) for name, tensors in found.items()}
        up, up_bias = (
            next((named[name] for name in names if name in named), None) for names in (UP, UP_BIAS)
        )
        assert up is not None
        return Expert(up, named["down_proj"], up_bias, named.get("down_proj_bias"))

    def _tensors(self, memory: Tensor, begin: int) -> dict[str, dict[str, Tensor]]:
        """Parameter -> field of its format ('' for plain weights) -> tensor."""
        found: dict[str, dict[str, Tensor]] = {}
        for part in self.parts:
            found.setdefault(part.name, {})[part.field] = tensor_of(memory, begin, part)
        return found

    def _weight(self, name: str, tensors: Mapping[str, Tensor]) -> Any:
        if name in self.formats:
            return LowBitMatrix(self.formats[name], tensors, self.shapes_OI[name])
        return tensors[""]


def layouts_of(model: nn.Module, layers: Sequence[MoeLayer], weights: ExpertWeights) -> list[ExpertLayout]:
    """The layout of each layer's records, as they are stored."""
    found = []
    records = zip(layers, weights.parts, weights.formats, weights.record_bytes, strict=True)
    for layer, parts, formats, nbytes in records:
        experts = unwrap(model.get_submodule(layer.experts))
        names = {part.name for part in parts if not part.name.endswith("_bias")}
        shapes_OI = {name: shape_OI_of(experts, name) for name in sorted(names)}
        found.append(ExpertLayout(parts, nbytes, formats, shapes_OI))
    return found


def check_formats(layouts: Sequence[ExpertLayout], device: torch.device, dtype: torch.dtype) -> None:
    """Raises UserError for a format in low bits that a device cannot compute: a product of zeros tells."""
    tried = {(layout.formats[name], layout.shapes_OI[name]) for layout in layouts for name in layout.formats}
    for format, shape_OI in tried:
        try:
            stored = {
                field.name: torch.zeros(field.shape, dtype=field.dtype, device=device)
                for field in format.fields(shape_OI)
            }
            format.product(torch.zeros(1, shape_OI[1], dtype=dtype, device=device), stored, shape_OI)
        except (RuntimeError, TypeError) as error:  # a missing kernel is one or the other
            raise UserError(
                f"experts in {format.name} do not run on {device.type} in {dtype}: {first_line(error)}"
            ) from None


def tensor_of(memory: Tensor, begin: int, part: Part) -> Tensor:
    """One tensor of the record whose first byte is `memory[begin]`: a view."""
    begin += part.begin
    return memory[begin : begin + part.nbytes].view(part.dtype).view(part.shape)


def copy_expert(source: Expert, target: Expert) -> None:
    """Copies all weights, into the target's types and device."""
    for old, new in zip(source, target, strict=True):
        if isinstance(old, LowBitMatrix):
            for field, tensor in old.stored.items():
                new.stored[field].copy_(tensor, non_blocking=True)  # type: ignore[union-attr] - of one layout
        elif old is not None:
            new.copy_(old, non_blocking=True)  # type: ignore[union-attr]


def into_model_order(expert: Expert, parts: Sequence[Part]) -> None:
    """Puts weights that were read in the checkpoint's order into the model's, in place."""
    for part in parts:
        if part.order == AS_IN_MODEL:
            continue
        weight = _named(expert, part.name)
        tensor = weight.stored[part.field] if isinstance(weight, LowBitMatrix) else weight
        tensor.copy_(in_model_order(tensor, part.order))


def in_model_order(weight: Tensor, order: str) -> Tensor:
    """One parameter of an expert whose numbers are in the checkpoint's order."""
    if order == INTERLEAVED:
        return torch.cat([weight[0::2], weight[1::2]])
    return weight.view(weight.shape[::-1]).T.clone() if order == TRANSPOSED else weight


def _named(expert: Expert, name: str) -> Matrix:
    if name in UP or name in UP_BIAS:
        found = expert.up if name in UP else expert.up_bias
    else:
        found = expert.down if name == "down_proj" else expert.down_bias
    assert found is not None
    return found
