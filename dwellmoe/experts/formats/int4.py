"""Four bits a weight: codes 0 to 15, times the scale of their group of a row, plus its zero.

A weight is `(code - 8) * scale + zero`, scale and zero in bfloat16, as torch's int4 products take them
(`_weight_int4pack_mm_for_cpu`). The range of a group is shrunk where that makes its squared error smaller.
"""

import torch
from torch import Tensor

from dwellmoe.errors import UserError
from dwellmoe.experts.formats.base import Field, QuantisingFormat, Stored
from dwellmoe.experts.formats.blocks import dequantise_blocks, steps_of_scale

GROUPS = (32, 64, 128)
MIDDLE, LARGEST = 8, 15
VALUES = torch.arange(16.0) - MIDDLE
SHRINKS = (1.0, 0.93, 0.86, 0.79)
"""Shares of a group's range that are tried."""


class Int4(QuantisingFormat):
    name = "int4"
    relative_error = 0.087

    def __init__(self, *, group: int = 64) -> None:
        if group not in GROUPS:
            raise UserError(f"expert format 'int4:group={group}': a group is {', '.join(map(str, GROUPS))}")
        self.group = group

    def fields(self, shape_OI: tuple[int, int]) -> tuple[Field, ...]:
        rows, groups = shape_OI[0], -(-shape_OI[1] // self.group)
        return (
            Field("scales", (rows, groups), torch.bfloat16),
            Field("zeros", (rows, groups), torch.bfloat16),
            Field("codes", (rows, groups * self.group // 2), torch.uint8),
        )

    def quantise(self, weight_OI: Tensor) -> dict[str, Tensor]:
        rows = len(weight_OI)
        groups_BN = self._whole_groups(weight_OI.float()).view(-1, self.group)
        tried = [_quantised(groups_BN, shrink) for shrink in SHRINKS]
        best_B = torch.stack([errors_B for errors_B, *_ in tried]).argmin(dim=0)
        scales_B, zeros_B, codes_BN = (_chosen(kind, best_B) for kind in list(zip(*tried, strict=True))[1:])
        return {
            "scales": scales_B.bfloat16().view(rows, -1),
            "zeros": zeros_B.bfloat16().view(rows, -1),
            "codes": codes_BN.view(rows, -1),
        }

    def _whole_groups(self, weight_OI: Tensor) -> Tensor:
        """The matrix, a last group that is not full filled up with its own numbers: so they alone decide its
        scale and zero.
        """
        over = weight_OI.shape[1] % self.group
        if not over:
            return weight_OI
        last_ON = weight_OI[:, -over:].repeat(1, -(-self.group // over))[:, : self.group]
        return torch.cat([weight_OI[:, :-over], last_ON], dim=1)

    def dequantise(self, stored: Stored, shape_OI: tuple[int, int], dtype: torch.dtype) -> Tensor:
        codes_BN = stored["codes"].view(-1, self.group // 2)
        scales_B, zeros_B = stored["scales"].flatten(), stored["zeros"].flatten()
        groups_BN = dequantise_blocks(codes_BN, VALUES, scales_B, zeros_B, dtype, high_first=False)
        return groups_BN.view(shape_OI[0], -1)[:, : shape_OI[1]]


def _quantised(groups_BN: Tensor, shrink: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Squared errors, scales, zeros and codes of the groups, their range shrunk by a factor."""
    low_B, high_B = torch.aminmax(groups_BN, dim=1)
    scales_B = ((high_B - low_B) * (shrink / LARGEST)).bfloat16().float()
    zeros_B = (low_B * shrink + MIDDLE * scales_B).bfloat16().float()
    codes_BN, errors_B = steps_of_scale(groups_BN, scales_B, zeros_B)
    return errors_B, scales_B, zeros_B, codes_BN


def _chosen(tried: tuple[Tensor, ...], best_B: Tensor) -> Tensor:
    """Of each group what was best for it."""
    return torch.stack(tried)[best_B, torch.arange(len(best_B))]


FORMAT = Int4
