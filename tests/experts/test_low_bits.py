"""Products of low-bit experts: the values and gradients of the dequantised weights, and no tensor kept."""

from typing import Any

import pytest
import torch

from dwellmoe.experts.formats import parse_format
from dwellmoe.experts.formats.stored import PlainWeights
from dwellmoe.experts.low_bits import ALIGNMENT_BYTES, LowBitExperts, record_layout

EXPERTS, UP, DOWN = 4, (24, 64), (64, 12)
ENDS = (3, 3, 10, 12)
"""Expert 1 has no rows."""


def _experts(spec: str) -> LowBitExperts:
    format: Any = parse_format(spec) or PlainWeights(torch.float32)
    layout = record_layout({"gate_up_proj": (format, UP), "down_proj": (format, DOWN)})
    held = LowBitExperts(layout, EXPERTS, torch.device("cpu"))
    for expert in range(EXPERTS):
        for name, matrix in layout.matrices.items():
            weight = torch.randn(matrix.shape_OI, generator=torch.Generator().manual_seed(expert)) * 0.1
            quantised = {"weight": weight} if spec == "as_stored" else format.quantise(weight)
            for field, target in held.stored(expert, name).items():
                target.copy_(quantised[field])
    return held


@pytest.mark.parametrize("spec", ["nf4", "int8", "int4", "as_stored"])
@pytest.mark.parametrize(("name", "shape"), [("gate_up_proj", UP), ("down_proj", DOWN)])
def test_products_and_gradients_are_those_of_the_dequantised_weights(spec, name, shape):
    held = _experts(spec)
    x_SI = torch.randn(ENDS[-1], shape[1], requires_grad=True)
    expert_S = torch.bucketize(torch.arange(ENDS[-1]), torch.tensor(ENDS), right=True)
    weights_EOI = torch.stack([held.dequantised(e, name, torch.float32) for e in range(EXPERTS)])
    expected_SO = torch.einsum("soi,si->so", weights_EOI[expert_S], x_SI)
    found_SO = held.product(name, x_SI, ENDS)
    torch.testing.assert_close(found_SO, expected_SO, atol=1e-5, rtol=1e-5)
    gradient_SO = torch.randn_like(found_SO)
    (found,) = torch.autograd.grad(found_SO, x_SI, gradient_SO)
    (expected,) = torch.autograd.grad(expected_SO, x_SI, gradient_SO)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def test_nothing_is_kept_for_the_backward_pass():
    kept = []
    x_SI = torch.randn(ENDS[-1], UP[1], requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(kept.append, lambda kept: kept):
        _experts("nf4").product("gate_up_proj", x_SI, ENDS)
    assert not kept


@pytest.mark.parametrize("spec", ["nf4", "int8", "int4:group=32"])
def test_a_record_is_one_piece_of_memory(spec):
    held = _experts(spec)
    begins = [begin for matrix in held.layout.matrices.values() for _, begin in matrix.fields]
    assert all(begin % ALIGNMENT_BYTES == 0 for begin in begins)
    assert held.records.shape == (EXPERTS, held.layout.nbytes)
    assert held.records.is_contiguous()
