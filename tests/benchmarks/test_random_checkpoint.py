"""The random checkpoint loads like a published one and is the same each time."""

import json
from typing import Any

import pytest
import random_checkpoint
import torch
from random_checkpoint import write_checkpoint
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from dwellmoe.errors import UserError

TINY = {
    "olmoe": {"hidden_size": 32, "intermediate_size": 16, "num_attention_heads": 4, "num_key_value_heads": 4},
    "deepseek-v2-lite": {"hidden_size": 32, "intermediate_size": 48, "moe_intermediate_size": 16},
}
SMALL = {"vocab_size": 4096, "num_hidden_layers": 2}


@pytest.fixture(params=TINY)
def shape(request, monkeypatch) -> str:
    """A shape's name, with small sizes behind it."""
    small = random_checkpoint.SHAPES[request.param] | TINY[request.param] | SMALL
    monkeypatch.setitem(random_checkpoint.SHAPES, request.param, small)
    return request.param


def test_every_weight_of_the_model_is_in_the_file(shape, tmp_path):
    folder = write_checkpoint(shape, tmp_path / "made", shard_bytes=200_000)
    loaded: Any = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    model, loading = loaded
    assert not loading["missing_keys"] and not loading["unexpected_keys"]
    assert model.dtype == torch.bfloat16
    assert AutoTokenizer.from_pretrained(folder)("hello").input_ids
    weight_map = json.loads((folder / "model.safetensors.index.json").read_text())["weight_map"]
    assert any(key.endswith("mlp.experts.63.down_proj.weight") for key in weight_map)
    assert len(set(weight_map.values())) > 1


def test_a_seed_is_a_checkpoint(shape, tmp_path):
    first, again, other = (
        write_checkpoint(shape, tmp_path / name, seed) for name, seed in (("a", 0), ("b", 0), ("c", 1))
    )
    name = next(first.glob("*.safetensors")).name
    assert (first / name).read_bytes() == (again / name).read_bytes()
    router = next(key for key in load_file(first / name) if key.endswith("gate.weight"))
    assert not torch.equal(load_file(first / name)[router], load_file(other / name)[router])


def test_a_disk_without_room_is_told_before_anything_is_written(tmp_path, monkeypatch):
    full = random_checkpoint.shutil._ntuple_diskusage(1, 1, 0)
    monkeypatch.setattr("benchmarks.random_checkpoint.shutil.disk_usage", lambda _: full)
    with pytest.raises(UserError, match="needed are 5"):
        write_checkpoint("olmoe-6l", tmp_path / "none")
    assert not list(tmp_path.iterdir())
