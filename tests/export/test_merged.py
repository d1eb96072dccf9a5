"""`dwellmoe export hf`: the merged model in the layout of its base."""

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from dwellmoe.cli.main import run
from dwellmoe.errors import UserError


def test_the_merged_model_has_the_bases_layout_and_loads_alone(
    whole_adapter, tiny_checkpoint, merged_weights, tmp_path
):
    out = tmp_path / "out"
    run(["export", "hf", "--adapter", str(whole_adapter), "--out", str(out)])
    found, expected = load_file(out / "model.safetensors"), merged_weights(whole_adapter)
    assert found.keys() == load_file(tiny_checkpoint / "model.safetensors").keys()
    assert all(torch.equal(found[name], expected[name]) for name in found)
    assert AutoModelForCausalLM.from_pretrained(out).config.model_type == "olmoe"
    assert len(AutoTokenizer.from_pretrained(out)) == len(AutoTokenizer.from_pretrained(tiny_checkpoint))


def test_a_folder_that_holds_something_is_refused(whole_adapter, tmp_path):
    (tmp_path / "mine.txt").write_text("x")
    with pytest.raises(UserError, match=r"--out .* not empty"):
        run(["export", "hf", "--adapter", str(whole_adapter), "--out", str(tmp_path)])
