"""A trained tensor that no gradient reaches ends the run after its first step."""

from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import Trainer, TrainingArguments

from dwellmoe.errors import UserError
from dwellmoe.families import find_moe_layers
from dwellmoe.locality.elastic_lora import LoraShape, add_elastic_lora
from dwellmoe.locality.gradient_check import GradientCheck
from tests.tiny_models import tiny_model

pytestmark = pytest.mark.slow

NEVER_CALLED = "model.layers.1.mlp.router.classifier.weight"
"""LongCat's router reads this weight and does not call its module, where PEFT's LoRA sits."""


def train(model, folder):
    tokens = torch.randint(3, 64, (4, 12), generator=torch.Generator().manual_seed(0))
    rows: Any = [{"input_ids": row, "labels": row} for row in tokens]
    settings = TrainingArguments(
        str(folder), max_steps=2, report_to="none", use_cpu=True, save_strategy="no", learning_rate=0.1
    )
    trainer = Trainer(model, settings, train_dataset=rows, callbacks=[GradientCheck()])
    trainer.train()
    return trainer.state.global_step


def test_lora_on_a_module_that_is_never_called_ends_the_run_by_name(tmp_path):
    config = LoraConfig(r=2, target_modules=["q_a_proj"], target_parameters=[NEVER_CALLED])
    model = get_peft_model(tiny_model("longcat_flash"), config)
    with pytest.raises(
        UserError, match=r"no gradient reached 2 .*layers\.1\.mlp\.router\.classifier.*lora_A"
    ):
        train(model, tmp_path)


def test_the_default_targets_of_that_family_all_get_one(tmp_path):
    model = tiny_model("longcat_flash")
    layers = find_moe_layers(model)
    gate: Any = model.get_submodule(layers[0].router)
    before = gate.classifier.weight.clone()
    model = add_elastic_lora(model, layers, LoraShape(rank=2))
    assert train(model, tmp_path) == 2
    name = f"base_model.model.{layers[0].router}.modules_to_save.default.classifier.weight"
    assert not torch.equal(model.get_parameter(name), before)
    assert not any(weight._backward_hooks for weight in model.parameters())
