"""The compiled pass for several rows in bfloat16, and the prompts that take it."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dwellmoe.experts.kernels import bfloat16_vectors, many_rows
from tests.experts.test_formats import _weight

BFLOAT16_ERROR = 2**-8
needs_pass = pytest.mark.skipif(not bfloat16_vectors.has_pair_products(), reason="needs AVX-512 BF16")


@needs_pass
@settings(deadline=None, max_examples=60)
@given(
    rows=st.one_of(st.integers(1, 12), st.sampled_from([47, 48, 49, 50, 51, 130])),
    outputs=st.sampled_from([4, 60, 64, 68, 200]),
    inputs=st.sampled_from([64, 128, 320]),
    size=st.sampled_from([1e-3, 1.0, 1e3]),
)
def test_products_are_rounded_once(rows, outputs, inputs, size):
    """Sums in float32 of exact products; no row depends on the others."""
    x_SI = (_weight((rows, inputs), 1) * size).bfloat16()
    matrix_OI = _weight((outputs, inputs), 2, torch.bfloat16)
    assert many_rows.takes(x_SI, matrix_OI)
    found = many_rows.product(x_SI, matrix_OI)
    exact = x_SI.double() @ matrix_OI.double().T
    largest = exact.abs().amax(dim=1, keepdim=True)
    assert found.dtype == torch.bfloat16 and found.shape == (rows, outputs)
    assert ((found.double() - exact).abs() <= BFLOAT16_ERROR * exact.abs() + 1e-5 * largest).all()
    assert found[-1].equal(many_rows.product(x_SI[-1:], matrix_OI)[0])


@needs_pass
def test_rows_of_larger_tensors():
    """Rows need not follow one another, and nothing is written beside the result."""
    wide = _weight((6, 256), 1, torch.bfloat16)
    matrix = _weight((8, 128), 2, torch.bfloat16)
    part = wide[:, :128]
    assert many_rows.product(part, matrix).equal(many_rows.product(part.contiguous(), matrix))


@needs_pass
@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_numbers_that_are_not_finite_stay_in_their_row(bad):
    x = _weight((5, 64), 1, torch.bfloat16)
    x[2, 40] = bad
    found = many_rows.product(x, _weight((8, 64), 2, torch.bfloat16))
    assert not found[2].isfinite().any() and found[[0, 1, 3, 4]].isfinite().all()


def test_what_the_pass_does_not_take():
    x, matrix = _weight((5, 64), 1, torch.bfloat16), _weight((8, 64), 2, torch.bfloat16)
    assert many_rows.takes(x, matrix) == bfloat16_vectors.has_pair_products()
    for other_x, other_matrix in (
        (x.float(), matrix),
        (x, matrix.float()),
        (x[:, :32], matrix[:, :32].contiguous()),
        (x, matrix[:6]),
        (x, _weight((64, 8), 2, torch.bfloat16).T),
        (x[:0], matrix),
        (x.clone().requires_grad_(), matrix),
    ):
        assert not many_rows.takes(other_x, other_matrix)


def test_processors_without_the_instruction_take_torchs_product(monkeypatch):
    monkeypatch.setattr(many_rows, "has_pair_products", lambda: False)
    assert not many_rows.takes(_weight((5, 64), 1, torch.bfloat16), _weight((8, 64), 2, torch.bfloat16))
