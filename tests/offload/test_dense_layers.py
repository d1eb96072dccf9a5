"""`--dense_format`: what every token passes is held in low bits."""

from typing import Any

import pytest
import torch

from dwellmoe.errors import UserError
from dwellmoe.experts.low_bit_linear import LowBitLinear, low_bit_bytes
from dwellmoe.offload import EngineSettings
from dwellmoe.offload.check_settings import check_settings
from tests.offload.workbench import engine_of, prompt


def _held(model: Any) -> set[str]:
    return {name for name, module in model.named_modules() if isinstance(module, LowBitLinear)}


@pytest.mark.parametrize("family", ["olmoe", "qwen2_moe", "deepseek_v2", "gpt_oss"])
def test_attention_dense_mlps_and_output_layer_are_held_in_it(family):
    model, engine = engine_of(family, dense_format="int8")
    with engine:
        held = _held(model)
        assert "lm_head" in held
        assert any("attn" in name for name in held)
        routers = {layer.router for layer in engine.layers}
        assert not any(name.startswith(router) for name in held for router in routers)
        if family != "olmoe" and family != "gpt_oss":
            assert any("shared_expert" in name for name in held)
        assert engine.fields()["settings"]["dense_format"] == "int8"


@pytest.mark.parametrize("spec", ["int8", "int4:group=32"])
def test_the_model_computes_with_the_dequantised_matrices(spec):
    """The same as a model whose plain matrices are those."""
    ids = prompt()
    model, engine = engine_of("olmoe", dense_format=spec)
    plain, other = engine_of("olmoe")
    with engine, other, torch.no_grad():
        found = model(ids).logits
        before = plain(ids).logits
        for name in _held(model):
            plain.get_submodule(name).weight.copy_(model.get_submodule(name).weight)
        expected = plain(ids).logits
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
    assert not torch.allclose(found, before, atol=1e-4)


def test_it_takes_fewer_bytes_than_the_matrices_did():
    model, engine = engine_of("olmoe", dense_format="int8")
    with engine:
        plain = sum(
            module.out_features * module.in_features * 4
            for module in model.modules()
            if isinstance(module, LowBitLinear)
        )
        assert low_bit_bytes(model) < 0.35 * plain


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("int5", "unknown --dense_format 'int5'.*int4, int8"),
        ("as_stored", "unknown --dense_format 'as_stored'"),
    ],
)
def test_an_unknown_format_is_refused_before_torch_is_needed(spec, message):
    with pytest.raises(UserError, match=message):
        check_settings(EngineSettings(dense_format=spec))


@pytest.mark.parametrize(
    ("spec", "message"),
    [("int4:group=33", "--dense_format int4:group=33.*32, 64, 128"), ("int8:x=1", "--dense_format int8:x=1")],
)
def test_wrong_options_are_refused_before_the_model_is_loaded(spec, message):
    with pytest.raises(UserError, match=message):
        engine_of("olmoe", folder="no/such/folder", dense_format=spec)  # type: ignore[arg-type]
