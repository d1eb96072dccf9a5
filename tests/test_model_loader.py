"""Errors for a checkpoint that cannot be loaded, and for an adapter that does not fit the model."""

import json
import shutil
from copy import deepcopy
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file

from dwellmoe.base_model import BASE_FILE
from dwellmoe.errors import UserError
from dwellmoe.evaluation.options import parse_options
from dwellmoe.export.merged import save_merged
from dwellmoe.families import find_moe_layers
from dwellmoe.loading import ADAPTER_FILE, ADAPTER_WEIGHTS, load_adapters, load_model, load_tokenizer
from dwellmoe.locality.elastic_lora import LoraShape, add_elastic_lora
from dwellmoe.offload.io.shards import find_shards
from dwellmoe.settings.model import ModelSettings
from model_loader import load_evaluated_model
from tests.data.stand_ins import word_tokenizer
from tests.experts.low_bit_checkpoints import fp8_checkpoint, mxfp4_checkpoint
from tests.tiny_models import tiny_model, tiny_multimodal


@pytest.fixture
def adapter(tmp_path):
    """LoRA on q_proj and a fully trained gate, as a folder."""
    config = LoraConfig(r=2, target_modules=["q_proj"], modules_to_save=["gate"], task_type="CAUSAL_LM")
    get_peft_model(tiny_model("olmoe"), config).save_pretrained(tmp_path)
    return tmp_path


def cut(folder):
    file = folder / ADAPTER_WEIGHTS
    file.write_bytes(file.read_bytes()[:-8])


def edited(change):
    def edit(folder):
        tensors = load_file(folder / ADAPTER_WEIGHTS)
        change(tensors)
        save_file(tensors, folder / ADAPTER_WEIGHTS)

    return edit


def of_rank_4(folder):
    config = json.loads((folder / ADAPTER_FILE).read_text())
    (folder / ADAPTER_FILE).write_text(json.dumps(config | {"r": 4}))


def without(part):
    return edited(lambda tensors: [tensors.pop(name) for name in list(tensors) if part in name])


def foreign(tensors):
    tensors["base_model.model.other.lora_A.weight"] = next(iter(tensors.values())).clone()


def not_finite(tensors):
    next(tensor for name, tensor in tensors.items() if "lora_A" in name).view(-1)[0] = float("nan")


def as_pointer(name):
    text = f"version https://git-lfs.github.com/spec/v1\noid sha256:{'0' * 64}\nsize 9\n"
    return lambda folder: (folder / name).write_text(text)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (cut, f"{ADAPTER_WEIGHTS}' cannot be read"),
        (lambda folder: (folder / ADAPTER_WEIGHTS).unlink(), f"{ADAPTER_WEIGHTS} is missing"),
        (lambda folder: (folder / ADAPTER_FILE).write_text("{"), f"{ADAPTER_FILE}' cannot be read"),
        (of_rank_4, r"q_proj.*shape torch.Size\(\[2, 32\]\).*torch.Size\(\[4, 32\]\)"),
        (without("layers.1.self_attn"), r"lacks .*layers.1.self_attn.q_proj.lora_A.*, 2 tensors"),
        (without("gate"), r"lacks .*gate"),
        (edited(foreign), "of another model: it has base_model.model.other"),
        (edited(not_finite), "its weight .*lora_A.weight holds NaN"),
        (as_pointer(ADAPTER_WEIGHTS), f"{ADAPTER_WEIGHTS}: a pointer of Git LFS"),
    ],
)
def test_what_is_wrong_is_named_in_one_line(adapter, spoil, message):
    spoil(adapter)
    with pytest.raises(UserError, match=message) as error:
        load_adapters(tiny_model("olmoe"), {"tuned": str(adapter)})
    assert "\n" not in str(error.value)


def test_a_checkpoint_without_tokenizer_files_has_none(tmp_path):
    tiny_model("olmoe").save_pretrained(tmp_path)
    with pytest.raises(UserError, match="no tokenizer in"):
        load_tokenizer(ModelSettings(model_name=str(tmp_path)))


@pytest.mark.parametrize(
    ("field", "message"),
    [
        ("num_experts", r"is \[8, .* in the file, \[16, .* by the configuration"),
        ("num_hidden_layers", "missing"),
    ],
)
def test_a_checkpoint_that_its_configuration_belies_is_refused(tmp_path, field, message):
    tiny_model("olmoe").save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {field: 16}))
    with pytest.raises(UserError, match=message) as error:
        load_model(ModelSettings(model_name=str(tmp_path)))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ([1], "cannot be loaded"),
        ({"hidden_size": "x"}, "hidden_size"),
        ({"dtype": "float7"}, "float7"),
        ({"hidden_act": "sillu"}, "unknown name 'sillu'"),
        ({"pad_token_id": 5000}, "(?i)padding_idx"),
    ],
)
def test_an_impossible_configuration_is_refused_in_one_line(tmp_path, entries, message):
    tiny_model("olmoe").save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    changed = config | entries if isinstance(entries, dict) else entries
    (tmp_path / "config.json").write_text(json.dumps(changed))
    with pytest.raises(UserError, match=message) as error:
        load_model(ModelSettings(model_name=str(tmp_path)))
    assert "\n" not in str(error.value)


def change_weight(change):
    def edit(folder):
        tensors = load_file(folder / "model.safetensors")
        tensors[EXPERT] = change(tensors[EXPERT])
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})

    return edit


EXPERT = "model.layers.1.mlp.experts.5.down_proj.weight"


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (change_weight(lambda weight: weight / 0), r"layers\.1\.mlp\.experts\.down_proj holds NaN"),
        (change_weight(lambda weight: weight.to(torch.int32)), f"{EXPERT} holds integers"),
        (as_pointer("model.safetensors"), r"model\.safetensors: a pointer of Git LFS"),
        (as_pointer("config.json"), r"config\.json: a pointer of Git LFS"),
    ],
)
def test_weights_that_cannot_be_meant_are_refused(tmp_path, spoil, message):
    """An expert counts though no token may choose it."""
    tiny_model("olmoe").save_pretrained(tmp_path)
    spoil(tmp_path)
    with pytest.raises(UserError, match=message):
        load_model(ModelSettings(model_name=str(tmp_path)))


def test_weights_that_the_configuration_leaves_out_are_told(tmp_path, capsys):
    tiny_model("olmoe").save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 2}))
    load_model(ModelSettings(model_name=str(tmp_path)))
    assert "tensors are left out" in (said := capsys.readouterr().err) and "model.layers.2." in said


class Hostile:
    """Calls a function where it is unpickled."""

    def __reduce__(self):
        return exit, (3,)


@pytest.mark.parametrize("content", ["hostile", "cut", "empty"])
def test_pickled_weights_that_hold_more_than_tensors_are_refused_in_one_line(tmp_path, content):
    model = tiny_model("olmoe")
    model.save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    weights = tmp_path / "pytorch_model.bin"
    torch.save({"a": Hostile()} if content == "hostile" else model.state_dict(), weights)
    if content != "hostile":
        weights.write_bytes(weights.read_bytes()[: 1000 if content == "cut" else 0])
    with pytest.raises(UserError, match=f"checkpoint '{tmp_path}' cannot be loaded") as error:
        load_model(ModelSettings(model_name=str(tmp_path)))
    assert "\n" not in str(error.value) and "torch" not in str(error.value).replace("pytorch_model", "")


def test_a_tokenizer_that_makes_no_tokens_is_refused(tmp_path):
    """transformers picks the class by `model_type`: here one that finds no words of this vocabulary."""
    tiny_multimodal("qwen3_5_moe").save_pretrained(tmp_path)
    word_tokenizer().save_pretrained(tmp_path)
    with pytest.raises(UserError, match=r"\(Qwen3_5Tokenizer\) makes no tokens"):
        load_tokenizer(ModelSettings(model_name=str(tmp_path)))


@pytest.mark.parametrize("method", ["bitsandbytes", "torchao"])
def test_a_quantised_checkpoint_is_refused_in_one_line(tmp_path, method):
    tiny_model("olmoe").save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    quantised = config | {"quantization_config": {"quant_method": method}}
    (tmp_path / "config.json").write_text(json.dumps(quantised))
    with pytest.raises(UserError, match=f"is quantised by {method}") as error:
        load_model(ModelSettings(model_name=str(tmp_path)))
    assert "\n" not in str(error.value)


def test_a_whole_adapter_loads_under_two_names(adapter):
    model = load_adapters(tiny_model("olmoe"), {"control": str(adapter), "tuned": str(adapter)})
    assert set(model.peft_config) == {"control", "tuned"}


def test_the_merged_model_keeps_the_types_of_the_bases_tensors(tmp_path, tiny_checkpoint):
    base, merged = tmp_path / "base", tmp_path / "merged"
    shutil.copytree(tiny_checkpoint, base)
    tensors = load_file(base / "model.safetensors")
    kept = next(name for name in tensors if name.endswith("mlp.gate.weight"))
    stored = {name: tensor if name == kept else tensor.bfloat16() for name, tensor in tensors.items()}
    save_file(stored, base / "model.safetensors", {"format": "pt"})
    settings = ModelSettings(model_name=str(base))
    model = load_model(settings)
    model = add_elastic_lora(model, find_moe_layers(model), LoraShape(rank=2))
    save_merged(model, load_tokenizer(settings), merged, settings)
    found = load_file(merged / "model.safetensors")
    assert {name: tensor.dtype for name, tensor in found.items()} == {
        name: tensor.dtype for name, tensor in stored.items()
    }
    assert torch.equal(found[kept], stored[kept])  # new LoRA adds nothing
    assert json.loads((merged / "config.json").read_text())["dtype"] == "bfloat16"


def test_an_adapter_of_another_base_is_refused_before_the_model_loads(tmp_path, tiny_checkpoint, monkeypatch):
    (tmp_path / BASE_FILE).write_text(json.dumps({"name": "another", "fingerprint": "0" * 32}))
    options = parse_options(["--model_name", str(tiny_checkpoint), "--lora_save_path", str(tmp_path)])
    monkeypatch.setattr("model_loader.load_model", lambda settings: pytest.fail("loaded"))
    with pytest.raises(UserError, match=r"'another'.*--allow_other_base"):
        load_evaluated_model(options)


@pytest.mark.parametrize(
    "folder", [mxfp4_checkpoint, lambda: fp8_checkpoint("deepseek_v3")], ids=["mxfp4", "fp8"]
)
def test_a_checkpoint_of_low_bits_is_merged_in_16_bits(folder, tmp_path):
    base = ModelSettings(str(folder()))
    model: Any = load_model(base)
    tuned: Any = add_elastic_lora(model, find_moe_layers(model), LoraShape(rank=2))
    for name, weight in tuned.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.05)
    expected = deepcopy(tuned).merge_and_unload().state_dict()
    save_merged(tuned, word_tokenizer(), tmp_path / "merged", base)
    merged: Any = load_model(ModelSettings(str(tmp_path / "merged")))
    # Weights, not logits: rounding to 16 bits may change which experts a token chooses.
    torch.testing.assert_close(merged.state_dict(), expected, rtol=2**-7, atol=1e-6)
    dtypes = {tensor.dtype for tensor in find_shards(str(tmp_path / "merged")).tensors.values()}
    assert dtypes <= {"BF16", "F32"}
