"""`dwellmoe export adapter --layout per_expert`: the same LoRA, one expert each."""

import json

import pytest
import torch
from peft import LoraConfig, PeftConfig
from safetensors.torch import load_file

from dwellmoe.adapter_folder import ADAPTER_FILE, ADAPTER_WEIGHTS
from dwellmoe.cli.main import run
from dwellmoe.errors import UserError
from dwellmoe.export.trained_adapter import WRAPPED
from tests.tiny_models import tiny_model

A, B = ".lora_A.weight", ".lora_B.weight"


def export(adapter, out):
    run(["export", "adapter", "--layout", "per_expert", "--adapter", str(adapter), "--out", str(out)])
    return load_file(out / ADAPTER_WEIGHTS)


def deltas(folder):
    """Matrix -> what the adapter adds to it."""
    tensors, config = load_file(folder / ADAPTER_WEIGHTS), PeftConfig.from_pretrained(folder)
    assert isinstance(config, LoraConfig) and config.use_rslora
    scale = config.lora_alpha / config.r**0.5
    names = [name.removesuffix(A) for name in tensors if name.endswith(A)]
    assert len(tensors) == 2 * len(names)
    return {name.removeprefix(WRAPPED): scale * tensors[name + B] @ tensors[name + A] for name in names}


@pytest.mark.slow
@pytest.mark.parametrize(
    "family", ["olmoe", "qwen3_moe", "qwen2_moe", "mixtral", "deepseek_v2", "qwen3_5_moe_text"]
)
def test_every_matrix_gets_what_peft_adds_to_it(family, make_adapter, merged_weights, tmp_path):
    base = tmp_path / "base"
    tiny_model(family).save_pretrained(base)
    adapter = make_adapter(base, ["auto"])
    export(adapter, tmp_path / "out")
    plain, merged, found = (
        load_file(base / "model.safetensors"),
        merged_weights(adapter, base),
        deltas(tmp_path / "out"),
    )
    changed = {name.removesuffix(".weight") for name in plain if not torch.equal(plain[name], merged[name])}
    routers = {name for name in changed if name.endswith(("mlp.gate", "block_sparse_moe.gate"))}
    split = {name for name in changed if name.endswith((".experts.gate_up_proj", ".experts.down_proj"))}
    for name in changed - routers - split:
        torch.testing.assert_close(
            found.pop(name), merged[f"{name}.weight"] - plain[f"{name}.weight"], atol=2e-6, rtol=1e-4
        )
    for name in split:  # stored for all experts in one tensor
        added, (owner, _, kind) = merged[name] - plain[name], name.rpartition(".")
        for expert in range(len(added)):
            halves = ("gate_proj", "up_proj") if kind == "gate_up_proj" else ("down_proj",)
            ours = torch.cat([found.pop(f"{owner}.{expert}.{half}") for half in halves])
            torch.testing.assert_close(ours, added[expert], atol=2e-6, rtol=1e-4)
    assert not found and routers


def test_rank_and_names_are_those_that_other_programs_read(whole_adapter, tmp_path):
    tensors = export(whole_adapter, tmp_path / "out")
    assert tensors[f"{WRAPPED}model.layers.2.mlp.experts.5.gate_proj{A}"].shape == (3, 32)
    assert tensors[f"{WRAPPED}model.layers.2.mlp.experts.5.down_proj{B}"].shape == (32, 3)
    config = json.loads((tmp_path / "out" / ADAPTER_FILE).read_text())
    assert {"gate_proj", "up_proj", "down_proj", "q_proj"} <= {*config["target_modules"]}
    assert config["target_parameters"] is config["modules_to_save"] is None and config["r"] == 3


def test_that_routers_are_left_out_is_said(make_adapter, tiny_checkpoint, tmp_path, capsys):
    adapter = make_adapter(tiny_checkpoint, ["up_proj", "attention"], ["gate"])
    tensors = export(adapter, tmp_path / "out")
    assert not any("gate." in name for name in tensors)
    assert "routers, not carried over" in capsys.readouterr().err


def test_an_adapter_without_experts_needs_no_other_layout(attention_adapter, tmp_path):
    with pytest.raises(UserError, match="no LoRA of experts"):
        export(attention_adapter, tmp_path / "out")
    assert not [*tmp_path.iterdir()]
