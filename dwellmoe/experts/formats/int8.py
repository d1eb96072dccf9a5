"""Eight bits a weight: whole numbers from -127 to 127 times one scale for each row, i.e. output channel."""

import torch
from torch import Tensor
from torch.nn.functional import linear

from dwellmoe.experts.formats.base import Field, QuantisingFormat, Stored

LARGEST = 127
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

    def dequantise(self, stored: Stored, shape_OI: tuple[int, int], dtype: torch.dtype) -> Tensor:
        return stored["codes"].float().mul_(stored["scales"].unsqueeze(1)).to(dtype)

    def product(self, x_SI: Tensor, stored: Stored, shape_OI: tuple[int, int]) -> Tensor:
        """The scales come after the product: the codes are exact in any type. Few rows take torch's product
        of mixed types, which copies no weight.
        """
        if len(x_SI) <= FEW_ROWS and x_SI.dtype == torch.bfloat16 and x_SI.device.type == "cpu":
            return torch._weight_int8pack_mm(x_SI, stored["codes"], stored["scales"].bfloat16())
        return linear(x_SI, stored["codes"].to(x_SI.dtype)).mul_(stored["scales"].to(x_SI.dtype))

    def gradient(self, gradient_SO: Tensor, stored: Stored, shape_OI: tuple[int, int]) -> Tensor:
        scaled_SO = gradient_SO * stored["scales"].to(gradient_SO.dtype)
        return scaled_SO @ stored["codes"].to(gradient_SO.dtype)


FORMAT = Int8
