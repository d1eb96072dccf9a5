"""Compiled passes: the same products on any number of threads, with and without torch's own int4 product."""

from typing import Any

import pytest
import torch

from dwellmoe.experts.formats import int4, int8, parse_format
from dwellmoe.experts.formats.fp8 import BlockFp8
from dwellmoe.experts.formats.mxfp4 import Mxfp4
from dwellmoe.experts.kernels import threads
from dwellmoe.experts.kernels.scratch import KEPT_BYTES, scratch
from tests.experts.test_formats import _random_bytes, _weight

FORMATS: dict[str, Any] = {
    **{spec: parse_format(spec) for spec in ("int8", "int4:group=32", "int4:group=128", "nf4")},
    "mxfp4": Mxfp4(),
    "fp8": BlockFp8((16, 32), parts=2),
}
SHAPES = [(64, 128), (96, 192), (50, 96)]
"""Also of rows that are no whole blocks of int4."""


def _stored(name: str, shape: tuple[int, int]):
    format = FORMATS[name]
    return _random_bytes(format, shape) if name == "fp8" else format.quantise(_weight(shape))


def _close(found: torch.Tensor, x: torch.Tensor, matrix_OI: torch.Tensor, tolerance: float) -> None:
    expected = x.double() @ matrix_OI.double().T
    assert found.dtype == x.dtype
    assert (found.double() - expected).norm() <= tolerance * expected.norm()


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 4e-3)])
@pytest.mark.parametrize("rows", [1, 5, 40])
def test_products_are_those_of_the_exact_matrix(name, shape, dtype, tolerance, rows):
    """bfloat16: the matrix itself is not rounded where few rows are multiplied; the sums are. int4 rounds
    several rows to bytes.
    """
    format, stored = FORMATS[name], _stored(name, shape)
    x = _weight((rows, shape[1]), 1, dtype) * 50
    matrix_OI = format.dequantise(stored, shape, torch.float32)
    rounds = name.startswith("int4") and rows > 1 and dtype == torch.bfloat16
    _close(format.product(x, stored, shape), x, matrix_OI, 8e-3 if rounds else tolerance)
    gradient = _weight((rows, shape[0]), 2, dtype) * 50
    _close(format.gradient(gradient, stored, shape), gradient, matrix_OI.T, tolerance)


@pytest.mark.parametrize("name", [name for name in FORMATS if name != "int8"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_any_number_of_threads_computes_the_same(name, dtype, monkeypatch):
    """All but int8 have passes of their own."""
    format, stored, shape = FORMATS[name], _stored(name, (96, 192)), (96, 192)
    x = _weight((2, 192), 1, dtype)
    found = []
    before = torch.get_num_threads()
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            found.append((format.product(x, stored, shape), format.dequantise(stored, shape, dtype)))
        monkeypatch.setattr(threads, "_parallel", lambda: None)
        found.append((format.product(x, stored, shape), format.dequantise(stored, shape, dtype)))
    finally:
        torch.set_num_threads(before)
    assert all(
        torch.equal(one, other) for each in found[1:] for one, other in zip(each, found[0], strict=True)
    )


@pytest.mark.parametrize("spec", ["int4:group=32", "int4:group=64", "int4:group=128"])
@pytest.mark.parametrize("shape", SHAPES)
def test_our_own_int4_product_is_torchs(spec, shape, monkeypatch):
    format: Any = parse_format(spec)
    stored = format.quantise(_weight(shape))
    x = _weight((3, shape[1]), 1, torch.bfloat16)
    usual = format.product(x, stored, shape)
    monkeypatch.setattr(int4, "torch_takes_our_layout", lambda: False)
    torch.testing.assert_close(format.product(x, stored, shape), usual, atol=0.0, rtol=2**-7)


@pytest.mark.parametrize(("width", "offset"), [(64, 4), (64, 0), (33, 0), (40, 8)])
def test_int8_takes_any_width_and_place_in_memory(width, offset):
    """torch's product of mixed types would read beyond rows, or crash where they do not begin at a vector."""
    format, shape = int8.Int8(), (6, width)
    stored = format.quantise(_weight(shape))
    memory = torch.zeros(6 * width + 64, dtype=torch.int8)
    codes = memory[offset : offset + 6 * width].view(shape).copy_(stored["codes"])
    x = _weight((2, width), 1, torch.bfloat16)
    matrix_OI = format.dequantise(stored, shape, torch.float32)
    _close(format.product(x, {**stored, "codes": codes}, shape), x, matrix_OI, 8e-3)


def test_the_scratch_is_one_piece_of_memory_for_each_thread_and_not_for_large_matrices():
    first, second = scratch((4, 8), dtype=torch.float32), scratch((2, 8), dtype=torch.bfloat16)
    assert first.data_ptr() == second.data_ptr()
    large = scratch((KEPT_BYTES // 4 + 1,), dtype=torch.float32)
    assert scratch((4,), dtype=torch.float32).data_ptr() != large.data_ptr()


@pytest.mark.parametrize("name", FORMATS)
def test_a_dequantised_matrix_is_kept_when_another_is_multiplied(name):
    format, shape = FORMATS[name], (64, 128)
    kept = format.dequantise(_stored(name, shape), shape, torch.float32)
    copy = kept.clone()
    other = {field: tensor.flip(0).contiguous() for field, tensor in _stored(name, shape).items()}
    format.product(_weight((64, 128)), other, shape)
    assert torch.equal(kept, copy)


def test_the_scratch_serves_inside_and_outside_of_inference_mode():
    format, shape = FORMATS["int8"], (64, 128)
    stored, x = _stored("int8", shape), _weight((64, 128))
    with torch.inference_mode():
        scratch((300, 300), dtype=torch.float32)
        inside = format.product(x, stored, shape)
    assert torch.equal(format.product(x, stored, shape), inside)
