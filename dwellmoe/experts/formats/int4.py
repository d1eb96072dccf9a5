"""Four bits a weight: codes 0 to 15, times the scale of their group of a row, plus its zero.

A weight is `(code - 8) * scale + zero`, scale and zero in bfloat16. The range of a group is shrunk where that
makes its squared error smaller. The bytes lie as torch's int4 product takes them on a processor with AVX-512
(`_weight_int4pack_mm_for_cpu`); on other processors a compiled pass of our own takes the same bytes.

Letters: N outputs in whole blocks of 64, K inputs in whole groups, G groups.
"""

import functools
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import pad

from dwellmoe.errors import UserError
from dwellmoe.experts.formats.base import Empty, Field, QuantisingFormat, Stored
from dwellmoe.experts.formats.blocks import passes_multiply, steps_of_scale
from dwellmoe.experts.kernels import int4_passes
from dwellmoe.experts.kernels.int4_passes import OUTPUTS, ROWS
from dwellmoe.experts.kernels.int4_vectors import has_byte_products
from dwellmoe.experts.kernels.one_row import is_one_row, products
from dwellmoe.experts.kernels.threads import run

GROUPS = (32, 64, 128)
MIDDLE, LARGEST = 8, 15
SHRINKS = (1.0, 0.93, 0.86, 0.79)
"""Shares of a group's range that are tried."""
ROWS_AT_ONCE = 16 * OUTPUTS
"""Rows that are quantised at once: ten copies of them are in memory meanwhile."""
FEW_ROWS = 32
"""With more, the product of a copy of the weights in 16 or 32 bits is faster, as measured."""


class Int4(QuantisingFormat):
    name = "int4"
    relative_error = 0.087

    def __init__(self, *, group: int = 64) -> None:
        if group not in GROUPS:
            raise UserError(f"expert format 'int4:group={group}': a group is {', '.join(map(str, GROUPS))}")
        self.group = group

    def fields(self, shape_OI: tuple[int, int]) -> tuple[Field, ...]:
        outputs, inputs = self._whole(shape_OI)
        return (
            Field("scales_and_zeros", (inputs // self.group, outputs, 2), torch.bfloat16),
            Field("codes", (outputs // OUTPUTS, inputs, OUTPUTS // 2), torch.uint8),
        )

    def _whole(self, shape_OI: tuple[int, int]) -> tuple[int, int]:
        """N and K"""
        return -(-shape_OI[0] // OUTPUTS) * OUTPUTS, -(-shape_OI[1] // self.group) * self.group

    def quantise(self, weight_OI: Tensor) -> dict[str, Tensor]:
        parts = [self._quantise_rows(rows_OI) for rows_OI in weight_OI.split(ROWS_AT_ONCE)]
        both, codes = (torch.cat(kind) for kind in zip(*parts, strict=True))
        return {"scales_and_zeros": both.transpose(0, 1).contiguous(), "codes": codes}

    def _quantise_rows(self, weight_OI: Tensor) -> tuple[Tensor, Tensor]:
        """Scales and zeros [N, G, 2], and codes."""
        outputs, inputs = self._whole((weight_OI.shape[0], weight_OI.shape[1]))
        groups_BN = self._whole_groups(weight_OI.float()).reshape(-1, self.group)
        tried = [_quantised(groups_BN, shrink) for shrink in SHRINKS]
        best_B = torch.stack([errors_B for errors_B, *_ in tried]).argmin(dim=0)
        scales_B, zeros_B, codes_BN = (_chosen(kind, best_B) for kind in list(zip(*tried, strict=True))[1:])
        both_OG2 = torch.stack([scales_B, zeros_B], dim=1).bfloat16().view(len(weight_OI), -1, 2)
        below = outputs - len(weight_OI)
        codes_NK = pad(codes_BN.view(-1, inputs // 2), (0, 0, 0, below))
        return pad(both_OG2, (0, 0, 0, 0, 0, below)), _in_blocks(codes_NK)

    def _whole_groups(self, weight_OI: Tensor) -> Tensor:
        """The matrix, a last group that is not full filled up with its own numbers: so they alone decide its
        scale and zero.
        """
        over = weight_OI.shape[1] % self.group
        if not over:
            return weight_OI
        last_ON = weight_OI[:, -over:].repeat(1, -(-self.group // over))[:, : self.group]
        return torch.cat([weight_OI[:, :-over], last_ON], dim=1)

    def dequantise(
        self, stored: Stored, shape_OI: tuple[int, int], dtype: torch.dtype, empty: Empty = torch.empty
    ) -> Tensor:
        outputs, inputs = self._whole(shape_OI)
        if stored["codes"].device.type != "cpu":
            return _looked_up(stored)[: shape_OI[0], : shape_OI[1]].to(dtype)
        short = dtype == torch.bfloat16
        out_KN = empty((inputs, outputs), dtype=torch.bfloat16 if short else torch.float32)
        function = int4_passes.to_bfloat16 if short else int4_passes.to_float32
        self._run(function, stored, outputs=outputs, inputs=inputs, out=out_KN)
        return out_KN.to(dtype)[: shape_OI[1], : shape_OI[0]].T

    def product(self, x_SI: Tensor, stored: Stored, shape_OI: tuple[int, int]) -> Tensor:
        if is_one_row(x_SI):
            return self.products(x_SI, [stored], shape_OI)
        in_bytes = has_byte_products() and x_SI.is_cpu and x_SI.dtype == torch.bfloat16
        if not in_bytes and not passes_multiply(x_SI, FEW_ROWS):
            return super().product(x_SI, stored, shape_OI)
        outputs, inputs = self._whole(shape_OI)
        x_SK = pad(x_SI, (0, inputs - shape_OI[1])) if inputs > shape_OI[1] else x_SI.contiguous()
        if in_bytes:
            return self._product_of_bytes(x_SK, stored, outputs)[:, : shape_OI[0]]
        if x_SK.dtype == torch.bfloat16 and torch_takes_our_layout():
            codes_NK = stored["codes"].view(outputs, inputs // 2)
            both = stored["scales_and_zeros"]
            return torch._weight_int4pack_mm_for_cpu(x_SK, codes_NK, self.group, both)[:, : shape_OI[0]]
        out_SN = torch.empty(len(x_SK), outputs)
        sizes = {"rows": len(x_SK), "outputs": outputs, "inputs": inputs}
        self._run(int4_passes.product, stored, x=x_SK.float(), out=out_SN, **sizes)
        return out_SN[:, : shape_OI[0]].to(x_SI.dtype)

    def products(self, x_MI: Tensor, stored: Sequence[Stored], shape_OI: tuple[int, int]) -> Tensor:
        if not is_one_row(x_MI, len(stored)):
            return super().products(x_MI, stored, shape_OI)
        whole_OI = self._whole(shape_OI)
        x_MK = pad(x_MI, (0, whole_OI[1] - shape_OI[1])) if whole_OI[1] > shape_OI[1] else x_MI
        codes, scales = ([each[field] for each in stored] for field in ("codes", "scales_and_zeros"))
        out_MN = products(int4_passes.one_row, x_MK, whole_OI, codes, scales, block=self.group)
        return out_MN[:, : shape_OI[0]]

    def _product_of_bytes(self, x_SK: Tensor, stored: Stored, outputs: int) -> Tensor:
        """Of rows whose groups are rounded to whole numbers of a byte, which are multiplied fastest.
        The error is 0.6 % of the result; that of four bits is 9 %.
        """
        rows, inputs = x_SK.shape
        whole_rows = -(-rows // ROWS) * ROWS
        x_in_bytes = torch.zeros(whole_rows * (inputs + inputs // self.group * 8), dtype=torch.uint8)
        out_SN = torch.empty(rows, outputs, dtype=torch.bfloat16)
        sizes = {"rows": rows, "outputs": outputs, "inputs": inputs}
        run(int4_passes.rows_in_bytes, block=self.group, x=x_SK, out=x_in_bytes, **sizes)
        self._run(int4_passes.product_of_bytes, stored, x=x_in_bytes, out=out_SN, **sizes)
        return out_SN

    def _run(self, function, stored: Stored, **work: int | Tensor) -> None:
        run(function, block=self.group, codes=stored["codes"], scales=stored["scales_and_zeros"], **work)


@functools.cache
def torch_takes_our_layout() -> bool:
    """Whether torch packs int4 here as this format does: its layout depends on the processor."""
    codes_NK = torch.arange(OUTPUTS * 32, dtype=torch.int32).view(OUTPUTS, 32) * 7 % 16
    try:
        packed = torch._convert_weight_to_int4pack_for_cpu(codes_NK, 1)
    except (RuntimeError, AttributeError):
        return False
    pairs = codes_NK[:, 0::2] | codes_NK[:, 1::2] << 4
    return torch.equal(packed.flatten(), _in_blocks(pairs.to(torch.uint8)).flatten())


def _in_blocks(pairs: Tensor) -> Tensor:
    """Codes in the order of the matrix, two a byte, low half first, uint8 [N, K / 2], in the order of the
    format, uint8 [N / 64, K, 32].
    """
    rows_NK = torch.stack([pairs & 15, pairs >> 4], dim=2).flatten(1)
    halves = rows_NK.view(-1, 2, OUTPUTS // 2, rows_NK.shape[1])
    return (halves[:, 0] | halves[:, 1] << 4).transpose(1, 2).contiguous()


def _looked_up(stored: Stored) -> Tensor:
    """The matrix [N, K] in float32, by torch's operations."""
    codes = stored["codes"]
    rows_NK = torch.cat([codes & 15, codes >> 4], dim=2).transpose(1, 2).flatten(0, 1)
    scales_NG, zeros_NG = stored["scales_and_zeros"].float().permute(2, 1, 0)
    steps_NGW = rows_NK.float().sub_(MIDDLE).view(*scales_NG.shape, -1)
    return torch.addcmul(zeros_NG[:, :, None], steps_NGW, scales_NG[:, :, None]).flatten(1)


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
