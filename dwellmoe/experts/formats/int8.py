"""Eight bits a weight: whole numbers from -127 to 127 times one scale for each row, i.e. output channel."""

from collections.abc import Sequence

import torch
from torch import Tensor

from dwellmoe.experts.formats.base import Empty, Field, QuantisingFormat, Stored
from dwellmoe.experts.kernels.many_rows import product
from dwellmoe.experts.kernels.one_row import INT8, is_one_row, products
from dwellmoe.experts.kernels.scratch import scratch

LARGEST = 127
VECTOR = 16
"""Weights that torch's product of mixed types reads at once."""
FEW_ROWS = 8
"""Of bfloat16 on a CPU: with more, torch's product of mixed types is slower than a copy of the codes."""


class Int8(QuantisingFormat):
    name = "int8"
    relative_error = 0.009

    def fields(self, shape_OI: tuple[int, int]) -> tuple[Field, ...]:
        return Field("scales", (shape_OI[0],), torch.float32), Field("codes", shape_OI, torch.int8)

    def quantise(self, weight_OI: Tensor) -> dict[str, Tensor]:
        scales_O = weight_OI.abs().amax(dim=1).float() / LARGEST
        divisors_O = torch.where(scales_O == 0, 1, scales_O)  # rows of zeros
        codes_OI = (weight_OI.float() / divisors_O.unsqueeze(1)).round_().to(torch.int8)
        return {"scales": scales_O, "codes": codes_OI}

    def dequantise(
        self, stored: Stored, shape_OI: tuple[int, int], dtype: torch.dtype, empty: Empty = torch.empty
    ) -> Tensor:
        return stored["codes"].float().mul_(stored["scales"].unsqueeze(1)).to(dtype)

    def product(self, x_SI: Tensor, stored: Stored, shape_OI: tuple[int, int]) -> Tensor:
        """The scales come after the product: the codes are exact in any type. Few rows take products that
        copy no weight: one row a compiled pass, several rows torch's product of mixed types.
        """
        if is_one_row(x_SI):
            return self.products(x_SI, [stored], shape_OI)
        scales_O, codes_OI = stored["scales"].to(x_SI.dtype), stored["codes"]
        if len(x_SI) <= FEW_ROWS and _torch_multiplies(x_SI, codes_OI):
            return torch._weight_int8pack_mm(x_SI, codes_OI, scales_O)
        return product(x_SI, _copied(codes_OI, x_SI.dtype)).mul_(scales_O)

    def products(self, x_MI: Tensor, stored: Sequence[Stored], shape_OI: tuple[int, int]) -> Tensor:
        if not is_one_row(x_MI, len(stored)):
            return super().products(x_MI, stored, shape_OI)
        codes, scales = ([each[field] for each in stored] for field in ("codes", "scales"))
        return products(INT8, x_MI, shape_OI, codes, scales)

    def gradient(self, gradient_SO: Tensor, stored: Stored, shape_OI: tuple[int, int]) -> Tensor:
        scaled_SO = gradient_SO * stored["scales"].to(gradient_SO.dtype)
        return scaled_SO @ _copied(stored["codes"], gradient_SO.dtype)


def _torch_multiplies(x_SI: Tensor, codes_OI: Tensor) -> bool:
    """Whether torch's product of mixed types takes these tensors: it checks neither that rows are whole
    vectors nor that they begin where it can read one.
    """
    if x_SI.dtype != torch.bfloat16 or x_SI.device.type != "cpu" or not x_SI.is_contiguous():
        return False
    return not (x_SI.shape[1] % VECTOR or x_SI.data_ptr() % (2 * VECTOR) or codes_OI.data_ptr() % VECTOR)


def _copied(codes_OI: Tensor, dtype: torch.dtype) -> Tensor:
    """The codes in another type, where the next copy will be put too."""
    return scratch(codes_OI.shape, dtype=dtype, device=codes_OI.device).copy_(codes_OI)


FORMAT = Int8
