"""Compiled passes for a token by itself: products with several matrices, linear layers, attention."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from dwellmoe.experts.formats import parse_format
from dwellmoe.experts.formats.base import ExpertFormat
from dwellmoe.experts.formats.fp8 import BlockFp8
from dwellmoe.experts.kernels import int4_passes, int4_vectors, one_query, one_row
from dwellmoe.experts.one_row_linear import OneRowLinear, OneRowWeight, take_single_rows
from tests.experts.test_formats import _random_bytes, _weight

FORMATS: dict[str, Any] = {
    **{spec: parse_format(spec) for spec in ("int8", "int4:group=32", "int4:group=128", "nf4", "mxfp4")},
    "fp8": BlockFp8((16, 32), parts=2),
}
SHAPES = [(64, 128), (50, 96), (192, 256)]
BFLOAT16_ERROR = 2**-8
needs_byte_products = pytest.mark.skipif(not int4_vectors.has_byte_products(), reason="needs AVX-512 VNNI")
INT4_PASSES = [
    int4_passes.one_row_of_floats,
    pytest.param(int4_passes.one_row_in_steps, marks=needs_byte_products),
]


def _stored(format: ExpertFormat, shape: tuple[int, int], seed: int) -> Any:
    if isinstance(format, BlockFp8):
        return _random_bytes(format, shape)
    return format.quantise(_weight(shape, seed))  # type: ignore[attr-defined] - all others quantise


def _exact(x_MI: torch.Tensor, matrices: list[torch.Tensor]) -> torch.Tensor:
    rows = x_MI.expand(len(matrices), -1)
    return torch.stack([matrix.double() @ row.double() for matrix, row in zip(matrices, rows, strict=True)])


def _assert_rounded_once(found: torch.Tensor, exact: torch.Tensor) -> None:
    """Up to the rounding of the result, and errors of float32 in sums of large numbers."""
    assert found.dtype == torch.bfloat16
    scale = exact.abs().amax(dim=-1, keepdim=True)
    assert ((found.double() - exact).abs() <= BFLOAT16_ERROR * exact.abs() + 1e-4 * scale).all()


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("own_rows", [True, False])
def test_one_row_times_several_matrices(name, shape, own_rows):
    format, count = FORMATS[name], 3
    stored = [_stored(format, shape, seed) for seed in range(count)]
    x_MI = _weight((count if own_rows else 1, shape[1]), 7, torch.bfloat16) * 50
    matrices = [format.dequantise(each, shape, torch.float32) for each in stored]
    found, exact = format.products(x_MI, stored, shape), _exact(x_MI, matrices)
    assert found.dtype == torch.bfloat16
    assert (found.double() - exact).norm() <= 4e-3 * exact.norm()


@pytest.mark.parametrize("own_rows", [True, False])
@pytest.mark.parametrize("shape", SHAPES)
def test_plain_matrices(shape, own_rows):
    matrices = [_weight(shape, seed, torch.bfloat16) for seed in range(3)]
    x_MI = _weight((3 if own_rows else 1, shape[1]), 7, torch.bfloat16)
    found = one_row.products(one_row.BFLOAT16, x_MI, shape, matrices)
    _assert_rounded_once(found, _exact(x_MI, matrices))


@pytest.mark.parametrize("function", INT4_PASSES)
@pytest.mark.parametrize("group", [32, 64, 128])
def test_both_int4_passes(function, group, monkeypatch):
    """With products of bytes and without; also rows whose groups differ by far, and hold zeros alone."""
    monkeypatch.setattr(int4_passes, "one_row", function)
    format: Any = parse_format(f"int4:group={group}")
    shape = (128, 256)
    stored = format.quantise(_weight(shape))
    x = _weight((1, shape[1]), 3, torch.bfloat16)
    x[:, :128] *= 1000
    for row in (x, torch.zeros_like(x), x.where(torch.arange(256) >= 128, 0)):
        matrix = format.dequantise(stored, shape, torch.float32)
        _assert_rounded_once(format.product(row, stored, shape), _exact(row, [matrix]))


@pytest.mark.parametrize("function", INT4_PASSES)
def test_numbers_that_are_not_finite_are_not_hidden(function, monkeypatch):
    monkeypatch.setattr(int4_passes, "one_row", function)
    format: Any = parse_format("int4:group=32")
    stored = format.quantise(_weight((64, 64)))
    for bad in (torch.nan, torch.inf, -torch.inf):
        x = _weight((1, 64), 3, torch.bfloat16)
        x[0, 40] = bad
        assert not format.product(x, stored, (64, 64)).isfinite().any()
        both = format.product(torch.cat([x, torch.ones_like(x)]), stored, (64, 64))
        assert not both[0].isfinite().any() and both[1].isfinite().all()


@needs_byte_products
@settings(deadline=None, max_examples=40)
@given(
    rows=st.integers(2, 9),
    outputs=st.sampled_from([64, 100, 192]),
    inputs=st.sampled_from([96, 128, 320]),
    group=st.sampled_from([32, 64, 128]),
    size=st.sampled_from([1e-3, 1.0, 1e3]),
)
def test_int4_times_several_rows(rows, outputs, inputs, group, size):
    """Each group of a row is rounded to whole numbers of a byte, and nothing else but the sum; no row depends
    on the others.
    """
    format: Any = parse_format(f"int4:group={group}")
    shape = (outputs, inputs)
    stored = format.quantise(_weight(shape))
    x = _weight((rows, inputs), 3, torch.bfloat16) * size
    x[0, : inputs // 2] *= 1000
    x[1, :group] = 0
    matrix = format.dequantise(stored, shape, torch.float32)
    found = format.product(x, stored, shape)
    rounded = _rounded_to_bytes(x, group)
    for row in range(rows):
        _assert_rounded_once(found[row : row + 1], _exact(rounded[row : row + 1], [matrix]))
    assert torch.equal(format.product(x.flip(0)[:2], stored, shape), found.flip(0)[:2])


def _rounded_to_bytes(x_SI: torch.Tensor, group: int) -> torch.Tensor:
    over = -x_SI.shape[1] % group
    groups = torch.nn.functional.pad(x_SI.float(), (0, over)).reshape(len(x_SI), -1, group)
    steps = groups.abs().amax(dim=2, keepdim=True) / 127
    whole = torch.where(steps > 0, groups * (1 / steps), 0).round()
    return (whole * steps).flatten(1)[:, : x_SI.shape[1]]


@pytest.mark.parametrize("bias", [True, False])
def test_linear_layer(bias):
    layer = nn.Linear(96, 50, bias=bias, dtype=torch.bfloat16)
    x = _weight((1, 1, 96), 3, torch.bfloat16) * 50
    usual, many = layer(x), layer(x.expand(2, 3, 96))
    take_single_rows(layer)
    assert isinstance(layer, OneRowLinear)
    assert torch.equal(layer(x), usual)  # gradients are kept: torch's own product
    assert layer(x).requires_grad
    with torch.no_grad():
        found = layer(x)
        assert torch.equal(layer(x.expand(2, 3, 96)), many)
    assert found.shape == usual.shape and found.dtype == usual.dtype
    torch.testing.assert_close(found, usual.detach(), rtol=2**-7, atol=1e-3)


def test_weight_that_a_router_multiplies_by_itself():
    router = nn.Module()
    router.weight = nn.Parameter(_weight((50, 96), 1, torch.bfloat16))
    usual, x = router.weight, _weight((1, 96), 3, torch.bfloat16) * 50
    router.weight = OneRowWeight(router.weight.data)
    assert router.weight.data_ptr() == usual.data_ptr()
    assert torch.equal(router.state_dict()["weight"], usual)
    linear = nn.functional.linear
    assert torch.equal(linear(x, router.weight), linear(x, usual))  # gradients are kept
    linear(x, router.weight).sum().backward()
    assert router.weight.grad is not None
    with torch.no_grad():
        _assert_rounded_once(linear(x, router.weight), _exact(x, [usual]).view(1, 50))
        assert torch.equal(linear(x.expand(3, 96), router.weight), linear(x.expand(3, 96), usual))
        assert type(router.weight * 2) is torch.Tensor


@settings(deadline=None, max_examples=25)
@given(
    batch=st.integers(1, 2),
    heads=st.sampled_from([1, 2, 3]),
    shared=st.sampled_from([1, 2, 4]),
    length=st.integers(1, 70),
    width=st.sampled_from([8, 24, 64]),
    size=st.sampled_from([0.1, 1.0, 30.0]),
    room=st.booleans(),
)
def test_attention_of_one_query(batch, heads, shared, length, width, size, room):
    torch.manual_seed(length)
    query = (torch.randn(batch, heads * shared, 1, width) * size).bfloat16()
    key, value = (torch.randn(batch, heads, length, width).bfloat16() for _ in range(2))
    if room:  # positions of other memory between the heads
        key, value = (torch.cat([each, each], dim=2)[:, :, :length] for each in (key, value))
    assert one_query.takes(query, key, value)
    found = one_query.attend(query, key, value, width**-0.5)
    every_key, every_value = (each.double().repeat_interleave(shared, dim=1) for each in (key, value))
    scores = query.double() @ every_key.transpose(2, 3) * width**-0.5
    expected = (scores.softmax(dim=-1) @ every_value).transpose(1, 2)
    assert found.shape == expected.shape and found.dtype == torch.bfloat16
    torch.testing.assert_close(found.double(), expected, rtol=2**-8, atol=2e-4)


def test_other_attention_is_left_to_torch():
    query, key = torch.zeros(1, 2, 1, 8).bfloat16(), torch.zeros(1, 2, 5, 8).bfloat16()
    assert one_query.takes(query, key, key)
    assert not one_query.takes(query.expand(1, 2, 3, 8), key, key)
    assert not one_query.takes(query.float(), key.float(), key.float())
    assert not one_query.takes(query, key, key[..., :4])
