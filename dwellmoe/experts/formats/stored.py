"""Weights of 16 or 32 bits as the checkpoint has them."""

import torch
from torch import Tensor

from dwellmoe.experts.formats.base import Empty, ExpertFormat, Field, Stored


class PlainWeights(ExpertFormat):
    name = "stored"
    exact = True

    def __init__(self, dtype: torch.dtype) -> None:
        self.dtype = dtype

    def fields(self, shape_OI: tuple[int, int]) -> tuple[Field, ...]:
        return (Field("weight", shape_OI, self.dtype),)

    def dequantise(
        self, stored: Stored, shape_OI: tuple[int, int], dtype: torch.dtype, empty: Empty = torch.empty
    ) -> Tensor:
        return stored["weight"].to(dtype)
