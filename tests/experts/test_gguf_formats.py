"""Q8_0 and Q4_0 as GGUF files hold them: to the bit what other decoders read, and products with them."""

import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType
from gguf.quants import dequantize, quantize
from hypothesis import given, settings
from hypothesis import strategies as st

from dwellmoe.errors import UserError
from dwellmoe.experts.formats import format_of, parse_format, text_of
from dwellmoe.experts.formats.q4_0 import Q4_0
from dwellmoe.experts.formats.q8_0 import Q8_0
from tests.experts import slow_decoders

FORMATS = pytest.mark.parametrize("format", [Q8_0(), Q4_0()], ids=lambda format: format.name)


def _random(format, shape, seed=0) -> dict[str, torch.Tensor]:
    """Any bytes that a file may hold: scales are finite, and some of them zero or below normal numbers."""
    draw = torch.Generator().manual_seed(seed)
    (field,) = format.fields(shape)
    blocks = torch.randint(0, 256, field.shape, dtype=torch.uint8, generator=draw)
    blocks[..., 1] &= 0b10111111  # no infinity; half of the exponents
    blocks[0, 0, 1] &= 0b10000011  # below normal numbers
    blocks[0, -1, :2] = 0
    return {"blocks": blocks}


@FORMATS
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", [(3, 64), (17, 96)])
def test_the_numbers_are_those_of_other_decoders(format, shape, dtype):
    stored = _random(format, shape)
    found = format.dequantise(stored, shape, dtype)
    assert format.exact
    assert torch.equal(found, getattr(slow_decoders, format.name)(stored, shape).to(dtype))
    flat = stored["blocks"].flatten(1).numpy()
    theirs = dequantize(flat, GGMLQuantizationType[format.name.upper()])
    assert torch.equal(format.dequantise(stored, shape, torch.float32), torch.tensor(theirs))


@FORMATS
def test_the_numbers_on_another_device_are_the_same(format):
    stored = _random(format, (5, 96))
    found = format.by_torch(stored, (5, 96), torch.float32)
    assert torch.equal(found, getattr(slow_decoders, format.name)(stored, (5, 96)))


@settings(max_examples=25)
@given(
    kind=st.sampled_from([Q8_0, Q4_0]),
    rows=st.integers(1, 12),
    outputs=st.integers(1, 40),
    blocks=st.integers(1, 4),
    seed=st.integers(0, 1000),
)
def test_products_are_those_of_the_numbers(kind, rows, outputs, blocks, seed):
    """Few rows are multiplied by a pass, more of them by a copy of the weights."""
    format, shape = kind(), (outputs, 32 * blocks)
    draw = torch.Generator().manual_seed(seed)
    weight = torch.randn(shape, generator=draw).numpy()
    packed = quantize(weight, GGMLQuantizationType[format.name.upper()])
    stored = {"blocks": torch.tensor(packed).view(outputs, blocks, -1)}
    x = torch.randn(rows, shape[1], generator=draw)
    exact = x.double() @ format.dequantise(stored, shape, torch.float32).double().T
    assert torch.allclose(format.product(x, stored, shape).double(), exact, rtol=1e-4, atol=1e-4)
    gradient = format.gradient(torch.ones(rows, outputs), stored, shape)
    expected = torch.ones(rows, outputs) @ format.dequantise(stored, shape, torch.float32)
    assert torch.allclose(gradient, expected, rtol=1e-4, atol=1e-4)


@FORMATS
def test_the_name_reads_back(format):
    assert format_of(text_of(format)) == format


@FORMATS
def test_nothing_is_quantised_to_them(format):
    """They are read out of GGUF files; the choices are formats of our own packing."""
    with pytest.raises(UserError, match=format.name):
        parse_format(format.name)


@FORMATS
def test_the_bytes_are_those_of_a_gguf(format):
    (field,) = format.fields((4, 64))
    packed = quantize(np.ones((4, 64), np.float32), GGMLQuantizationType[format.name.upper()])
    assert packed.nbytes == torch.Size(field.shape).numel()
