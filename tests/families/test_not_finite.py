"""A model whose results are NaN is refused by the name of the weight, or of the layer."""

from typing import Any

import pytest
import torch

from dwellmoe.errors import UserError
from dwellmoe.families.not_finite import check_finite, refuse_nan
from dwellmoe.offload import EngineSettings, engine_of, load_with_cache
from tests.tiny_models import tiny_model

INPUTS = {"input_ids": torch.arange(3, 11)[None]}


def spoiled(name: str, value: float):
    model = tiny_model("olmoe")
    with torch.no_grad():
        model.get_parameter(name).flatten()[0] = value
    return model


@pytest.mark.parametrize("name", ["model.layers.1.self_attn.q_proj.weight", "lm_head.weight"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_weight_in_memory_is_named(name, value):
    model = spoiled(name, value)
    with pytest.raises(UserError, match=f"its weight {name} holds NaN"):
        refuse_nan(model, torch.tensor(float("nan")), INPUTS)


def test_only_a_vector_may_hold_infinity():
    """A router's bias of minus infinity switches an expert off."""
    vector = torch.tensor([0.0, float("-inf")])
    check_finite([("bias", vector), ("none", torch.empty(0)), ("ids", torch.arange(3))], "model")
    for wrong in (vector[None], vector * float("nan")):
        with pytest.raises(UserError, match="model: its weight wrong holds"):
            check_finite([("wrong", wrong)], "model")


def test_finite_results_are_not_refused():
    model = tiny_model("olmoe")
    refuse_nan(model, model(**INPUTS).logits, INPUTS)
    refuse_nan(model, torch.tensor(float("nan")), INPUTS)  # it is not the model that makes this NaN


def test_experts_on_disk_are_named_by_their_layer(tmp_path):
    model = tiny_model("olmoe")
    with torch.no_grad():
        model.get_parameter("model.layers.2.mlp.experts.down_proj").fill_(float("nan"))
    model.save_pretrained(tmp_path)
    cached, _ = load_with_cache(str(tmp_path), EngineSettings("50%"))
    engine = engine_of(cached)
    assert engine is not None
    with engine, torch.inference_mode(), pytest.raises(UserError, match=r"NaN from model\.layers\.2\.mlp"):
        refuse_nan(cached, cached(**INPUTS).logits, INPUTS)


@pytest.mark.parametrize(("shape", "value"), [((4, 2), "inf"), ((8,), "nan")])
def test_the_shard_of_a_rank_is_looked_through(shape, value):
    """Under ZeRO-3 a parameter is empty, and its share lies beside it, flat."""
    weight: Any = torch.nn.Parameter(torch.empty(0))
    weight.ds_shape, weight.ds_tensor = torch.Size(shape), torch.ones(4)
    check_finite([("part", weight)], "model")
    weight.ds_tensor[1] = float(value)
    with pytest.raises(UserError, match="its weight part holds"):
        check_finite([("part", weight)], "model")
