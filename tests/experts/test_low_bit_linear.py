"""Linear layers in low bits: the values of their dequantised matrix, LoRA beside them."""

from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn

from dwellmoe.experts.formats import parse_format
from dwellmoe.experts.low_bit_linear import LowBitLinear, hold_in_low_bits, low_bit_bytes


def _layer(bias: bool = True) -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(96, 80, bias=bias).requires_grad_(False)


@pytest.mark.parametrize("spec", ["int8", "int4:group=32", "nf4", "mxfp4"])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(96,), (1, 1, 96), (2, 30, 96)])
def test_it_computes_with_the_dequantised_matrix(spec, bias, shape):
    layer, x = _layer(bias), torch.randn(shape)
    format: Any = parse_format(spec)
    held = hold_in_low_bits(layer, format)
    matrix = format.dequantise(format.quantise(layer.weight), (80, 96), torch.float32)
    assert torch.equal(held.weight, matrix)
    torch.testing.assert_close(held(x), nn.functional.linear(x, matrix, layer.bias), atol=1e-5, rtol=1e-5)


def test_its_bytes_are_those_of_the_format_and_no_parameter():
    held = hold_in_low_bits(_layer(), parse_format("int8"))  # type: ignore[arg-type]
    assert [name for name, _ in held.named_parameters()] == ["bias"]
    assert low_bit_bytes(nn.Sequential(held, nn.Linear(2, 2))) == held.nbytes == 80 * 96 + 4 * 80


def test_weights_that_are_not_finite_are_refused():
    layer = _layer()
    layer.weight[3, 5] = float("nan")
    with pytest.raises(ValueError, match="not finite"):
        hold_in_low_bits(layer, parse_format("int8"))  # type: ignore[arg-type]


def test_lora_is_put_beside_it():
    model: Any = nn.Sequential()
    model.q_proj = hold_in_low_bits(_layer(), parse_format("int8"))  # type: ignore[arg-type]
    x = torch.randn(3, 96)
    before = model.q_proj(x)
    config = LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False)
    wrapped: Any = get_peft_model(model, config)
    layer = wrapped.base_model.model.q_proj
    assert isinstance(layer.base_layer, LowBitLinear)
    added = layer.lora_B["default"](layer.lora_A["default"](x)) * layer.scaling["default"]
    torch.testing.assert_close(layer(x), before + added)
