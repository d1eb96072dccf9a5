"""Every MoE family of the installed transformers with its experts in a cache: the tokens of the model in
memory, for one and several requests and prompts of one token; the simulator repeats what the caches did;
every predictor predicts.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from dwellmoe.cache.replay.replay_split import replay_split
from dwellmoe.errors import UserError
from dwellmoe.families import expert_parameters, find_moe_layers
from dwellmoe.loading import load_model
from dwellmoe.offload import Engine, EngineSettings, load_with_cache
from dwellmoe.offload.check_settings import live_predictor_names
from dwellmoe.offload.expert_weights import names_in_model
from dwellmoe.offload.io.shards import find_shards
from dwellmoe.offload.prefetch_predictors import make_prefetch_predictor
from dwellmoe.offload.skeleton import is_routed_expert, load_shapes
from dwellmoe.routing.scoutgate import ScoutGate, save_scoutgate
from dwellmoe.settings.model import ModelSettings
from tests.every_family import NOT_CHECKED, made, moe_families
from tests.offload.workbench import prompt
from tests.tiny_models import tiny_config, tiny_model

pytestmark = pytest.mark.slow

PROMPTS = {"long": prompt(9), "one token": prompt(1), "three rows": prompt(5, rows=3)}
"""With four experts a layer in the cache, three rows of two experts make two requests."""
ANSWER: dict[str, Any] = {"max_new_tokens": 3, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
SMALL: dict[str, Any] = {"prefill_buffer": 2, "readers": 2}
HANDOFF = EngineSettings.prefill_handoff
DBRX: dict[str, Any] = {
    "d_model": 32,
    "n_heads": 4,
    "n_layers": 2,
    "vocab_size": 64,
    "attn_config": {"kv_n_heads": 2, "clip_qkv": 8, "rope_theta": 10000.0},
    "ffn_config": {"hidden_size": 32, "ffn_hidden_size": 48, "moe_num_experts": 4, "moe_top_k": 2},
}


class Saved(NamedTuple):
    folder: Path
    answers: dict[str, torch.Tensor]
    """Of the model in memory to each prompt."""


def saved(model: Any, folder: Path) -> Saved:
    model.save_pretrained(folder)
    in_memory: Any = load_model(ModelSettings(model_name=str(folder), dtype="float32")).eval()
    return Saved(folder, answers(in_memory))


@torch.no_grad()
def answers(model: Any, names: Iterable[str] = PROMPTS) -> dict[str, torch.Tensor]:
    return {name: model.generate(PROMPTS[name], **ANSWER) for name in names}


def check_answers(model: Any, expected: dict[str, torch.Tensor], names: Iterable[str] = PROMPTS) -> None:
    found = answers(model, names)
    assert all(torch.equal(found[name], expected[name]) for name in names)


def check_replay(engine: Engine) -> None:
    """The trace of the live run, replayed, gives the same counts."""
    fields = engine.fields()
    row = replay_split(engine.trace(), "lru", engine.budget.capacity, HANDOFF)
    for name in ("hits", "misses", "compulsory_misses"):
        assert fields["decode_cache"][name] == getattr(row, name)
    assert fields["prefill"]["disk_loads"] == row.prefill_loads


def check_predictors(model: Any, engine: Engine, tmp_path: Path, expected: dict) -> None:
    """Each predictor of the next layer's experts, one after the other in one engine."""
    layers = engine.layers
    scout = str(tmp_path / "scout.safetensors")
    gate = ScoutGate(model.get_input_embeddings().weight.detach(), len(layers), layers[0].num_experts)
    save_scoutgate(gate, scout, "tiny")
    cached_experts = engine.cached_experts
    for name in live_predictor_names():
        spec = f"{name}:weights={scout}" if name.endswith("scoutgate") else name
        engine.reset()
        cached_experts.prefetch.predictor = make_prefetch_predictor(
            spec, model, layers, cached_experts.forward_pass
        )
        check_answers(model, expected, ["three rows"])
        assert engine.statistics.prefetch_issued or len(layers) == 1, name


def check_placement(folder: Path, tmp_path: Path, expected: dict) -> None:
    settings = EngineSettings(
        expert_budget="4",
        decode_policy="placement",
        placement_predictor=f"gate_ahead+scoutgate:weights={tmp_path / 'scout.safetensors'}",
        ram_budget="6",
        **SMALL,
    )
    model, engine = load_with_cache(str(folder), settings, torch.float32)
    with engine:
        check_answers(model, expected, ["long", "three rows"])


def check_experts_are_left_out(folder: Path) -> None:
    """Loading the rest of the model reads no routed expert, and everything else."""
    model, layers = load_shapes(str(folder))
    experts = {f"{layer.experts}.{name}" for layer in layers for name in expert_parameters(model, layer)}
    tensors = find_shards(str(folder)).tensors
    for key, name, _ in names_in_model(model, tensors):
        assert is_routed_expert(key, tensors[key]) == (name in experts), key


def check_family(model: Any, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    folder, expected = saved(model, tmp_path / "model")
    check_experts_are_left_out(folder)
    offloaded, engine = load_with_cache(str(folder), EngineSettings("4", **SMALL), torch.float32)
    with engine:
        engine.record()
        check_answers(offloaded, expected)
        check_replay(engine)
        check_predictors(offloaded, engine, tmp_path, expected)
    check_placement(folder, tmp_path, expected)
    assert "cannot be asked" not in capsys.readouterr().err


@pytest.mark.parametrize("family", [name for name in moe_families() if name not in NOT_CHECKED])
def test_a_family_runs_from_a_cache(family, tmp_path, capsys):
    check_family(made(family), tmp_path, capsys)


def test_routers_of_two_kinds_in_one_model(tmp_path, capsys):
    """DeepSeek-V4 looks the experts of its first layers up by token."""
    model: Any = tiny_model("deepseek_v4", mlp_layer_types=["hash_moe", "hash_moe", "moe"])
    for layer in find_moe_layers(model)[:2]:
        table = model.get_submodule(layer.router).tid2eid
        table.copy_(torch.rand(table.shape[0], layer.num_experts).argsort(dim=1)[:, : layer.top_k])
    check_family(model, tmp_path, capsys)


@pytest.mark.parametrize(
    ("config", "kind"),
    [
        (tiny_config("jetmoe"), "JetMoeMoE"),
        (tiny_config("doge", is_moe=True), "DogeCDMoE"),
        (AutoConfig.for_model("dbrx", **DBRX), "DbrxExperts"),
    ],
    ids=["jetmoe", "doge", "dbrx"],
)
def test_experts_of_another_shape_are_refused_by_name(config, kind, tmp_path):
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    with pytest.raises(UserError, match=rf"has experts of a shape that is not supported \({kind}\)"):
        load_with_cache(str(tmp_path), EngineSettings("50%"))
