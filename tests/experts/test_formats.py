"""Formats of frozen experts: bytes, exactness, error, products and gradients."""

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from dwellmoe.errors import UserError
from dwellmoe.experts.formats import FORMATS, parse_format
from dwellmoe.experts.formats.fp8 import BlockFp8
from dwellmoe.experts.formats.mxfp4 import Mxfp4
from dwellmoe.experts.formats.stored import PlainWeights
from dwellmoe.settings.model import EXPERT_FORMATS
from tests.experts import slow_decoders

QUANTISING = ("nf4", "int8", "int4:group=32", "int4", "int4:group=128", "mxfp4")
SHAPES = [(24, 64), (5, 96), (7, 33)]


def _weight(shape, seed=0, dtype=torch.float32) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).mul(0.02).to(dtype)


def _random_bytes(format, shape, seed=0) -> dict[str, torch.Tensor]:
    """Stored tensors of any bytes that a checkpoint may hold."""
    draw = torch.Generator().manual_seed(seed)
    stored = {}
    for field in format.fields(shape):
        if field.dtype.itemsize == 1:
            of_bytes = torch.randint(0, 256, field.shape, dtype=torch.uint8, generator=draw)
            if field.name == "scales":
                of_bytes.clamp_(100, 140)
            of_bytes[of_bytes % 128 == 127] = 0  # FP8's NaN
            stored[field.name] = of_bytes.view(field.dtype)
        else:
            stored[field.name] = torch.rand(field.shape, generator=draw).add(0.5).to(field.dtype)
    return stored


def test_the_names_that_options_know_are_the_formats():
    assert sorted(EXPERT_FORMATS) == sorted([*FORMATS.names(), "as_stored"])


@pytest.mark.parametrize("spec", QUANTISING)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_quantised_weights_are_what_a_slow_decoder_reads(spec, shape, dtype):
    format = parse_format(spec)
    stored = format.quantise(_weight(shape, dtype=torch.bfloat16))
    found = [(field.name, field.shape, field.dtype) for field in format.fields(shape)]
    assert found == [(name, tuple(tensor.shape), tensor.dtype) for name, tensor in stored.items()]
    decoded = getattr(slow_decoders, format.name)(stored, shape)
    assert torch.equal(format.dequantise(stored, shape, dtype), decoded.to(dtype))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(6, 64), (3, 160)])
def test_mxfp4_is_read_exactly(shape, dtype):
    stored = _random_bytes(Mxfp4(), shape)
    found = Mxfp4().dequantise(stored, shape, dtype)
    assert torch.equal(found.float(), slow_decoders.mxfp4(stored, shape))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("scale_type", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("shape", "block", "parts"), [((8, 12), (4, 4), 1), ((10, 14), (4, 8), 2)])
def test_block_fp8_is_exact(shape, block, parts, scale_type, dtype):
    format = BlockFp8(block, parts=parts, scale_type=scale_type)
    stored = _random_bytes(format, shape)
    decoded = slow_decoders.fp8(stored, shape, block, parts)
    assert torch.equal(format.dequantise(stored, shape, dtype), decoded.to(dtype))


@pytest.mark.parametrize("spec", QUANTISING)
def test_the_error_is_the_stated_one(spec):
    format = parse_format(spec)
    weight = _weight((256, 512))
    found = format.dequantise(format.quantise(weight), (256, 512), torch.float32)
    error = float((found - weight).norm() / weight.norm())
    assert not format.exact
    if ":" not in spec:
        assert error == pytest.approx(format.relative_error, rel=0.2)
    assert error < 0.13


@settings(max_examples=25, deadline=None)
@example(spec="int4:group=128", rows=1, width=5, scale=1e-6, seed=10)
@given(
    spec=st.sampled_from(QUANTISING),
    rows=st.integers(1, 9),
    width=st.integers(1, 140),
    scale=st.sampled_from([1e-6, 1.0, 1e4]),
    seed=st.integers(0, 1000),
)
def test_no_weight_is_further_off_than_its_step(spec, rows, width, scale, seed):
    """Half a step is below a tenth of the range of a row (int8) or block; int4 may shrink it by a fifth, and
    mxfp4 may cut its largest numbers off at three quarters.
    """
    weight = _weight((rows, width), seed) * scale
    format = parse_format(spec)
    found = format.dequantise(format.quantise(weight), (rows, width), torch.float32)
    share = {"int8": 1 / 200, "nf4": 0.2, "mxfp4": 0.25}.get(format.name, 0.22)
    assert (found - weight).abs().max() <= share * weight.abs().max()


@pytest.mark.parametrize("spec", QUANTISING)
def test_weights_of_zero_stay_zero(spec):
    format = parse_format(spec)
    assert not format.dequantise(format.quantise(torch.zeros(4, 64)), (4, 64), torch.float32).any()


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 1000), scale=st.sampled_from([1e-30, 1.0, 1e30]), heavy=st.booleans())
def test_no_other_power_of_two_is_nearer_than_mxfp4s(seed, scale, heavy):
    """Of all powers, tried by a decoder of its own; so it is never worse than the specification's rule."""
    weight = _weight((4, 32), seed).double()
    weight = ((weight**3 if heavy else weight) * scale).float()
    sizes = torch.tensor([slow_decoders.e2m1(code) for code in range(16)], dtype=torch.float64)
    found = Mxfp4().dequantise(Mxfp4().quantise(weight), (4, 32), torch.float32)
    for row, nearest in zip(weight.double(), found.double(), strict=True):
        top = float(row.abs().max().log2().floor())
        steps = [2.0 ** (top + shift) for shift in range(-5, 3)]
        errors = [(row / step - sizes[:, None]).abs().amin(0).mul(step).square().sum() for step in steps]
        assert (nearest - row).square().sum() <= min(errors) * (1 + 1e-6)


def test_int4_shrinks_ranges_only_where_that_is_nearer():
    """At a single outlier a group, the plain range is a good deal worse."""
    weight = _weight((64, 64))
    format = parse_format("int4")
    found = format.dequantise(format.quantise(weight), (64, 64), torch.float32)
    low, high = weight.aminmax(dim=1, keepdim=True)
    step = (high - low) / 15
    rounded = ((weight - low) / step).round() * step + low
    assert (found - weight).square().sum() < 0.99 * (rounded - weight).square().sum()


@pytest.mark.parametrize("spec", [*QUANTISING, "mxfp4", "fp8", "stored"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_products_and_gradients_are_those_of_the_dequantised_matrix(spec, dtype):
    shape = (32, 64)
    published = {"mxfp4": Mxfp4(), "fp8": BlockFp8((16, 32)), "stored": PlainWeights(torch.bfloat16)}
    format = published.get(spec) or parse_format(spec)
    stored = format.quantise(_weight(shape)) if spec in QUANTISING else _random_bytes(format, shape)
    matrix = format.dequantise(stored, shape, torch.float32)
    x, gradient = _weight((5, 64), 1, dtype), _weight((5, 32), 2, dtype)
    for found, expected in (
        (format.product(x, stored, shape), x.float() @ matrix.T),
        (format.gradient(gradient, stored, shape), gradient.float() @ matrix),
    ):
        assert found.dtype == dtype
        tolerance = 1e-5 if dtype == torch.float32 else 2e-2
        assert (found.float() - expected).norm() <= tolerance * expected.norm()


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("nf5", "unknown expert format 'nf5'.*did you mean 'nf4'.*as_stored"),
        ("int4:group=33", "int4:group=33.*32, 64, 128"),
        ("int4:group=x", "group.*int"),
        ("int8:group=32", "unknown option 'group'"),
    ],
)
def test_wrong_formats_are_refused(spec, message):
    with pytest.raises(UserError, match=message):
        parse_format(spec)
