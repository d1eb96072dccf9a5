"""Checkpoints with their experts in low bits: results, gradients, adapters, sizes, and what is refused."""

import json
import re
import shutil
from typing import Any

import pytest
import torch
from peft import PeftModelForCausalLM
from safetensors.torch import load_file, save_file

from dwellmoe.errors import UserError
from dwellmoe.experts import use_expert_lora
from dwellmoe.experts.weights import ATTRIBUTE
from dwellmoe.families import expert_bytes, find_moe_layers
from dwellmoe.families.base import unwrap
from dwellmoe.loading import check_expert_format, load_adapters, load_model
from dwellmoe.locality.elastic_lora import LoraShape, add_elastic_lora
from dwellmoe.settings.model import ModelSettings
from tests.experts.low_bit_checkpoints import fp8_checkpoint, mxfp4_checkpoint
from tests.offload.workbench import checkpoint, prompt
from tests.tiny_models import FAMILIES as ALL_FAMILIES
from tests.tiny_models import tiny_model

FAMILIES = ["olmoe", "qwen3_moe", "gpt_oss", "deepseek_v3", "mixtral", "llama4_text", "longcat_flash"]
OTHER_FAMILIES = sorted({*ALL_FAMILIES} - {*FAMILIES})
FORMATS = ["nf4", "int8", "int4:group=32"]


def _settings(folder, expert_format=None, dtype="float32") -> ModelSettings:
    return ModelSettings(model_name=str(folder), dtype=dtype, expert_format=expert_format)


def _dequantised_twin(folder, low):
    """The same model with parameters that hold what the low-bit experts stand for."""
    twin = load_model(_settings(folder))
    for layer in find_moe_layers(low):
        experts = low.get_submodule(layer.experts)
        held, parameters = getattr(experts, ATTRIBUTE), twin.get_submodule(layer.experts)
        for name in held.layout.matrices:
            for expert in range(layer.num_experts):
                weight_OI = held.dequantised(expert, name, torch.float32)
                getattr(parameters, name).data[expert] = weight_OI.T if experts.transposed else weight_OI
    return twin


def _loss(model, ids):
    return model(ids, labels=ids).loss


@pytest.mark.parametrize(
    "family", [*FAMILIES, *(pytest.param(name, marks=pytest.mark.slow) for name in OTHER_FAMILIES)]
)
def test_as_stored_gives_what_the_plain_model_gives(family):
    folder, ids = checkpoint(family), prompt(rows=2)
    with torch.no_grad():
        expected = load_model(_settings(folder))(ids).logits
        found = load_model(_settings(folder, "as_stored"))(ids).logits
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES[:5])
@pytest.mark.parametrize("expert_format", FORMATS)
def test_adapters_train_as_on_dequantised_weights(family, expert_format):
    """The loss and every gradient of LoRA on all modules."""
    folder, ids = checkpoint(family), prompt(rows=2)
    low = load_model(_settings(folder, expert_format))
    twin = _dequantised_twin(folder, low)
    models = []
    for model in (low, twin):
        torch.manual_seed(0)
        wrapped = add_elastic_lora(model, find_moe_layers(model), LoraShape(rank=2))
        use_expert_lora(wrapped)
        for name, weight in wrapped.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(weight, std=0.05)
        loss = _loss(wrapped.train(), ids)
        loss.backward()
        models.append((loss, {n: w.grad for n, w in wrapped.named_parameters() if w.requires_grad}))
    (found_loss, found), (loss, expected) = models
    torch.testing.assert_close(found_loss, loss, atol=1e-5, rtol=1e-5)
    assert found.keys() == expected.keys()
    assert any("experts" in name for name in found)
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, atol=1e-5, rtol=1e-4, msg=name)


@pytest.mark.parametrize(
    "folder",
    [
        mxfp4_checkpoint,
        lambda: fp8_checkpoint("deepseek_v3"),
        lambda: fp8_checkpoint("qwen3_moe", torch.bfloat16),
        lambda: fp8_checkpoint("mixtral"),
    ],
    ids=["mxfp4", "fp8-deepseek_v3", "fp8-qwen3_moe", "fp8-mixtral"],
)
def test_published_low_bits_give_what_transformers_dequantises(folder):
    ids = prompt(rows=2)
    with torch.no_grad():
        plain = load_model(_settings(folder()))
        low = load_model(_settings(folder(), "as_stored"))
        torch.testing.assert_close(low(ids).logits, plain(ids).logits, atol=1e-5, rtol=1e-5)
        requantised = load_model(_settings(folder(), "int8"))(ids).logits
    assert (requantised - plain(ids).logits).norm() < 0.05 * plain(ids).logits.norm()
    layer = find_moe_layers(plain)[0]
    assert expert_bytes(low, layer) < 0.3 * expert_bytes(plain, layer)
    for name, weight in low.named_parameters():
        assert weight.dtype == torch.float32, name


@pytest.mark.parametrize(("expert_format", "most"), [("nf4", 0.30), ("int8", 0.56), ("int4", 0.30)])
def test_experts_take_their_share_of_16_bits(expert_format, most, tmp_path):
    tiny_model("olmoe", hidden_size=128, intermediate_size=128).bfloat16().save_pretrained(tmp_path)
    plain, low = (load_model(_settings(tmp_path, form, "bfloat16")) for form in (None, expert_format))
    sizes = [sum(expert_bytes(model, layer) for layer in find_moe_layers(model)) for model in (low, plain)]
    assert sizes[0] <= most * sizes[1]
    assert not any("experts" in name for name, _ in low.named_parameters())


@pytest.mark.parametrize("expert_format", ["nf4", "as_stored"])
def test_an_adapter_is_the_same_beside_any_form(expert_format, tmp_path):
    """Trained beside low bits it loads on the whole model, by plain PEFT too, and the other way round."""
    folder, ids = checkpoint("qwen3_moe"), prompt()
    low = load_model(_settings(folder, expert_format))
    tuned = add_elastic_lora(low, find_moe_layers(low), LoraShape(rank=2))
    for name, weight in tuned.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.05)
    tuned.save_pretrained(tmp_path / "adapter")
    use_expert_lora(tuned)
    again = load_adapters(load_model(_settings(folder, expert_format)), {"tuned": str(tmp_path / "adapter")})
    plain = PeftModelForCausalLM.from_pretrained(load_model(_settings(folder)), tmp_path / "adapter")
    with torch.no_grad():
        expected = tuned.eval()(ids).logits
        torch.testing.assert_close(again(ids).logits, expected)
        tolerance = 1e-5 if expert_format == "as_stored" else 0.1
        assert (plain.eval()(ids).logits - expected).norm() <= tolerance * expected.norm()


def test_gradient_checkpointing_gives_the_same_gradients():
    folder, ids = checkpoint("olmoe"), prompt(rows=2)
    gradients = []
    for checkpointed in (False, True):
        torch.manual_seed(0)
        model = load_model(_settings(folder, "nf4"))
        if checkpointed:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        tuned = add_elastic_lora(model, find_moe_layers(model), LoraShape(rank=2))
        use_expert_lora(tuned)
        _loss(tuned.train(), ids).backward()
        gradients.append({name: w.grad for name, w in tuned.named_parameters() if w.requires_grad})
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, msg=name)


def test_answers_are_generated():
    model: Any = load_model(_settings(checkpoint("olmoe"), "int8"))
    plain: Any = _dequantised_twin(checkpoint("olmoe"), model)
    options = {"max_new_tokens": 8, "do_sample": False, "eos_token_id": None}
    assert torch.equal(model.generate(prompt(), **options), plain.generate(prompt(), **options))


def test_the_stand_ins_are_no_parameters():
    model: Any = load_model(_settings(checkpoint("gpt_oss"), "nf4"))
    experts = unwrap(model.get_submodule(find_moe_layers(model)[0].experts))
    assert {name for name, _ in experts.named_parameters()} == {"gate_up_proj_bias", "down_proj_bias"}
    assert not any(weight.is_meta for weight in model.parameters())
    model.to(torch.device("cpu"), torch.bfloat16)


@pytest.mark.parametrize("method", ["awq", "gptq", "bitsandbytes", "torchao", "compressed-tensors", "fp8"])
def test_other_quantisations_are_refused_with_those_that_train(method, tmp_path):
    folder = shutil.copytree(checkpoint("olmoe"), tmp_path / "m")
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = {"quant_method": method}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match=f"{method}.*MXFP4.*FP8") as error:
        check_expert_format(_settings(folder, "nf4"))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("folder", "lost"),
    [
        (mxfp4_checkpoint, "experts.down_proj_scales"),
        (lambda: fp8_checkpoint("mixtral"), "experts.1.w1.weight_scale_inv"),
        (lambda: fp8_checkpoint("mixtral"), "self_attn.q_proj.weight_scale_inv"),
    ],
    ids=["mxfp4", "fp8", "fp8-attention"],
)
def test_low_bits_without_their_scales_are_refused(folder, lost, tmp_path):
    folder = shutil.copytree(folder(), tmp_path / "m")
    tensors = load_file(folder / "model.safetensors")
    del tensors[next(name for name in tensors if name.endswith(lost))]
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(UserError, match=f"without (their|its) scales.*{lost}"):
        load_model(_settings(folder, "as_stored"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda tensors, name: tensors.pop(name), "experts are in the checkpoint|no weights"),
        (lambda tensors, name: tensors.update({name: torch.zeros(4, 4)}), "differ in shape|has shape"),
        (lambda tensors, name: tensors[name].fill_(torch.nan), "NaN"),
    ],
    ids=["missing", "shape", "nan"],
)
def test_damaged_experts_are_refused(change, message, tmp_path):
    folder = shutil.copytree(checkpoint("olmoe"), tmp_path / "m")
    tensors = load_file(folder / "model.safetensors")
    change(tensors, next(name for name in tensors if ".experts.1.down_proj" in name))
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(UserError, match=message):
        load_model(_settings(folder, "nf4"))


def test_a_weight_beside_the_experts_that_is_nan_is_refused(tmp_path):
    folder = shutil.copytree(checkpoint("olmoe"), tmp_path / "m")
    tensors = load_file(folder / "model.safetensors")
    tensors["model.layers.1.self_attn.q_proj.weight"][0, 0] = torch.nan
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(UserError, match=r"layers\.1\.self_attn\.q_proj\.weight"):
        load_model(_settings(folder, "nf4"))


def test_a_dense_model_is_refused(tmp_path):
    from transformers import AutoModelForCausalLM, LlamaConfig

    config = LlamaConfig(
        vocab_size=64, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2
    )
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    with pytest.raises(UserError, match=re.escape("--expert_format nf4") + ".*no MoE layer"):
        load_model(_settings(tmp_path, "nf4"))
