"""The whole build, on a random Llama in the place of the real one and random tokens in that of text."""

import pytest
import torch

import build as build_script
from dwellmoe.errors import UserError
from dwellmoe.families import find_moe_layers
from dwellmoe.loading import load_model
from dwellmoe.settings.model import ModelSettings
from tests.data.stand_ins import WORDS, word_tokenizer
from tests.models.tiny_smollm2_moe.tiny_llama import tiny_llama

SMALL = ["--num_experts", "8", "--top_k", "2", "--shared_neurons", "16"]
SMALL += ["--heal_rows", "10", "--distil_rows", "8", "--held_out_rows", "2"]


@pytest.fixture
def build(tmp_path, monkeypatch):
    """Runs a build in a work folder of the given name; returns its numbers."""

    def rows(_tokenizer, *rest):
        count = next(value for value in rest if isinstance(value, int))
        return torch.randint(len(WORDS), (count, 256), generator=torch.Generator().manual_seed(count))

    monkeypatch.setattr(build_script, "healing_rows", rows)
    monkeypatch.setattr(build_script, "held_out_rows", rows)

    def run(name: str) -> dict:
        work = tmp_path / name
        if not work.exists():
            _write_dense(work / "dense")
        options = ["--work_dir", str(work), "--output_dir", str(tmp_path / "built"), *SMALL]
        return build_script.Build(build_script.parse_options(options)).run()

    return run


def _write_dense(folder) -> None:
    tiny_llama(vocab_size=len(WORDS), num_hidden_layers=3, eos_token_id=1).save_pretrained(folder)
    word_tokenizer().save_pretrained(folder)


@pytest.mark.slow
def test_an_interrupted_build_gives_the_same_model(build, monkeypatch, tmp_path):
    whole = build("whole")
    stages = ["dense", "fitted", "healed", "built", "built, routed experts off", "built, random experts"]
    assert list(whole["perplexity"]) == stages
    assert len(find_moe_layers(load_model(ModelSettings(model_name=str(tmp_path / "built"))))) == 3

    heal_block, calls = build_script.heal_block, []

    def killed_in_the_second_layer(*args, **options):
        calls.append(args)
        if len(calls) == 2:
            raise KeyboardInterrupt
        heal_block(*args, **options)

    monkeypatch.setattr(build_script, "heal_block", killed_in_the_second_layer)
    with pytest.raises(KeyboardInterrupt):
        build("killed")
    resumed = build("killed")
    assert len(calls) == 2 + 2, "the first layer is healed once"
    assert resumed["sha256"] == whole["sha256"]
    assert resumed["blocks"] == whole["blocks"]


def test_a_folder_of_something_else_is_not_replaced(tmp_path):
    with pytest.raises(UserError, match="no earlier build"):
        build_script.check_replaceable(tmp_path)
    build_script.check_replaceable(tmp_path / "new")
