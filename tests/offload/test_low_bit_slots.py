"""Low-bit experts in the engine's slots: the answers of the same weights in memory, in their own bytes."""

import shutil
from functools import cache
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from dwellmoe.cache.replay.replay_split import replay_split
from dwellmoe.errors import UserError
from dwellmoe.experts.formats.fp8 import BlockFp8
from dwellmoe.experts.formats.mxfp4 import Mxfp4
from dwellmoe.families import expert_bytes, find_moe_layers
from dwellmoe.loading import BASE, active_variant, load_adapters, load_model, load_model_with_cache
from dwellmoe.locality.elastic_lora import LoraShape, add_elastic_lora
from dwellmoe.offload import Engine, EngineSettings, LiveRerouting, load_with_cache
from dwellmoe.offload import engine_of as engine_behind
from dwellmoe.offload.pack import pack
from dwellmoe.routing import SimulatedCache
from dwellmoe.settings.model import ModelSettings
from tests.experts.low_bit_checkpoints import fp8_checkpoint, mxfp4_checkpoint
from tests.offload.test_rerouting import generated
from tests.offload.workbench import cached, checkpoint, engine_of, packed, present, prompt, tiers
from tests.session_folder import session_folder

PUBLISHED: dict[str, Any] = {
    "mxfp4": mxfp4_checkpoint,
    "fp8-deepseek_v3": lambda: fp8_checkpoint("deepseek_v3"),
    "fp8-qwen3_moe": lambda: fp8_checkpoint("qwen3_moe", torch.bfloat16),
    "fp8-mixtral": lambda: fp8_checkpoint("mixtral"),
}
CHECKPOINTS = PUBLISHED | {
    "packed-int4": lambda: packed("olmoe", "int4:group=32"),
    "packed-int8": lambda: packed("gpt_oss", "int8"),
    "packed-nf4": lambda: packed("llama4_text", "nf4"),
}
GREEDY = {"max_new_tokens": 8, "do_sample": False, "eos_token_id": None}


@pytest.fixture(params=CHECKPOINTS)
def folder(request) -> Path:
    return CHECKPOINTS[request.param]()


@pytest.fixture(params=PUBLISHED)
def published(request) -> Path:
    return PUBLISHED[request.param]()


@cache
def resident(folder: Path, expert_format: str | None = "as_stored") -> Any:
    """All experts in memory: as they are stored, or with None as transformers dequantises them."""
    return load_model(ModelSettings(str(folder), dtype="float32", expert_format=expert_format)).eval()


def _engine(folder: Path, **settings):
    return engine_of("", folder, **settings)


@pytest.mark.slow
@pytest.mark.parametrize("budget", ["2", "50%", "100%"])
def test_answers_are_those_of_the_same_weights_in_memory(folder, budget):
    model, engine = _engine(folder, expert_budget=budget)
    with engine, torch.no_grad():
        for seed in range(2):
            ids = prompt(9, rows=1 + seed, seed=seed)
            found = model.generate(ids, **GREEDY)
            for expert_format in ("as_stored", None):
                other = resident(folder, expert_format)
                assert torch.equal(found, other.generate(ids, **GREEDY))
                torch.testing.assert_close(model(ids).logits, other(ids).logits, atol=1e-5, rtol=1e-5)
        assert present(engine) == cached(engine)


@pytest.mark.slow
@pytest.mark.parametrize(
    "settings",
    [
        {"prefetch_budget": 3},
        {"prefetch_budget": 2, "prefetch_predictor": "habits"},
        {"ram_budget": "7", "prefill_policy": "lru", "prefill_buffer": 6},
        {"ram_budget": "6", "decode_policy": "placement", "prefetch_budget": 2},
        {"io": "buffered", "prefill_handoff": "shared"},
    ],
    ids=["gate ahead", "habits", "RAM tier", "placement", "buffered"],
)
@pytest.mark.parametrize("name", ["mxfp4", "fp8-qwen3_moe", "packed-int4"])
def test_every_tier_and_predictor(name, settings):
    folder = CHECKPOINTS[name]()
    model, engine = _engine(folder, **settings)
    with engine:
        for seed in range(3):
            ids = prompt(10, seed=seed)
            assert torch.equal(model.generate(ids, **GREEDY), resident(folder).generate(ids, **GREEDY))
            assert present(engine) == cached(engine)
        if "ram_budget" in settings:
            in_ram = np.array([engine.in_ram(layer.index) for layer in engine.layers])
            assert in_ram.any() and np.array_equal(engine.loaded_in_ram(), in_ram)
            assert (tiers(engine) == 1).any()


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_a_slot_is_as_large_as_what_is_stored(published, dtype):
    """Also where all else is computed in 32 bits; MXFP4 has biases in 16 bits, which are then wider."""
    model, engine = _engine(published, dtype=getattr(torch, dtype))
    with engine:
        layer = find_moe_layers(model)[0]
        stored = sum(
            tensor.nbytes
            for name, tensor in load_file(published / "model.safetensors").items()
            if f"layers.{layer.layer_id}." in name and ".experts." in name and "shared" not in name
        )
        biases = sum(
            weight[0].numel() * 2
            for name, weight in model.get_submodule(layer.experts).named_parameters()
            if name.endswith("_bias")
        )
        expected = stored // layer.num_experts + (biases if dtype == "float32" else 0)
        assert engine.record_bytes[0] == expert_bytes(model, layer) == expected
        assert (engine.memory.staging_bytes > 0) == (dtype == "float32" and biases > 0)


def test_a_budget_in_bytes_holds_more_experts():
    """All 8 of a layer, where in 16 bits the same memory holds 2."""
    plain = checkpoint("olmoe", torch.bfloat16, hidden_size=128, intermediate_size=128)
    low = session_folder("packed-wide")
    pack(str(plain), low, "int4", workers=1)
    slots = []
    for folder in (plain, low):
        _, engine = _engine(folder, dtype=torch.bfloat16, expert_budget="1100KiB")
        with engine:
            assert engine.memory.total_bytes <= 1100 << 10
            slots.append(engine.budget.capacity)
    assert slots == [2, 8]


@pytest.mark.slow
@pytest.mark.parametrize(
    "settings",
    [{"prefill_handoff": "recent:tokens=3"}, {"prefill_handoff": "shared"}, {"prefetch_budget": 2}],
    ids=["hand-off", "shared", "prefetch"],
)
def test_the_simulator_counts_what_the_engine_did(folder, settings):
    model, engine = _engine(folder, expert_budget="3", **settings)
    with engine:
        engine.record()
        for seed in range(3):
            model.generate(prompt(9, seed=seed), **GREEDY)
        trace, fields = engine.trace(), engine.fields()
    handoff = settings.get("prefill_handoff", "recent:tokens=8")
    row = replay_split(trace, "lru", 3, handoff)
    assert trace.expert_bytes == engine.record_bytes
    for name in ("hits", "misses", "compulsory_misses", "hit_rate"):
        assert fields["decode_cache"][name] == getattr(row, name)
    if handoff != "shared":
        assert fields["prefill"]["disk_loads"] == row.prefill_loads
    decode = fields["decode"]
    assert decode["disk_bytes"] == decode["disk_loads"] * engine._slot_table.weights.record_bytes[0]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mxfp4", "fp8-deepseek_v3"])
@pytest.mark.parametrize("spec", ["margin", "cecar"])
def test_rerouting_by_the_engine_is_rerouting_by_a_simulated_cache(name, spec):
    plain = resident(CHECKPOINTS[name]())
    virtual = SimulatedCache(
        plain, find_moe_layers(plain), spec, policy="lru", capacity=4, prefill_handoff="none"
    )
    expected = generated(
        plain, virtual, lambda ids, at: virtual.describe([at], np.ones(ids.shape), np.zeros(ids.shape))
    )
    model, engine = _engine(CHECKPOINTS[name](), expert_budget="4", prefill_handoff="none")
    with engine:
        live = LiveRerouting(model, find_moe_layers(model), engine, spec)
        assert generated(model, live, lambda ids, at: None) == expected


def _adapter(base: Path, folder: Path, seed: int) -> str:
    """Random LoRA of everything in all but the last layer, experts included."""
    model = load_model(ModelSettings(str(base), dtype="float32"))
    torch.manual_seed(seed)
    tuned = add_elastic_lora(model, find_moe_layers(model)[:-1], LoraShape(rank=2))
    for name, weight in tuned.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.1)
    tuned.save_pretrained(str(folder))
    return str(folder)


@pytest.mark.slow
@pytest.mark.parametrize("budget", ["2", "100%"])
@pytest.mark.parametrize("name", ["mxfp4", "fp8-deepseek_v3", "packed-int8"])
def test_adapters_run_beside_the_slots(name, budget, tmp_path):
    folder = CHECKPOINTS[name]()
    paths = {name: _adapter(folder, tmp_path / name, seed) for seed, name in enumerate(("one", "two"))}
    settings = ModelSettings(str(folder), dtype="float32", expert_format="as_stored")
    low = load_adapters(load_model(settings), paths)
    slots = load_adapters(load_model_with_cache(settings, EngineSettings(budget, readers=2)), paths)
    engine: Any = engine_behind(slots)
    with engine, torch.no_grad():
        logits = []
        for variant in (BASE, "one", "two", BASE):
            before = engine.loaded_on_device()
            with active_variant(low, variant), active_variant(slots, variant):
                assert np.array_equal(engine.loaded_on_device(), before)
                expected = low(prompt()).logits
                torch.testing.assert_close(slots(prompt()).logits, expected, atol=1e-5, rtol=1e-5)
                ids = {"input_ids": prompt()}
                assert torch.equal(slots.generate(**ids, **GREEDY), low.generate(**ids, **GREEDY))
                logits.append(expected)
        assert (logits[0] - logits[1]).abs().max() > 1e-2 and torch.equal(logits[0], logits[3])
        assert (logits[1] - logits[2]).abs().max() > 1e-2


@pytest.mark.parametrize(
    ("name", "spec"),
    [("mxfp4", "as_stored"), ("packed-int4", "int4:group=32"), ("packed-int4", "as_stored")],
)
def test_the_stored_format_may_be_named(name, spec):
    model, engine = load_with_cache(str(CHECKPOINTS[name]()), EngineSettings("3"), expert_format=spec)
    with engine:
        assert model.dtype == torch.bfloat16


def test_a_packed_model_that_is_read_in_a_checkpoints_place_counts():
    low, plain = packed("olmoe", "int4:group=32"), checkpoint("olmoe", torch.bfloat16)
    settings = EngineSettings("3", packed=str(low))
    loaded = load_with_cache(str(plain), settings, torch.float32, expert_format="int4:group=32")
    model, engine = cast(tuple[Any, Engine], loaded)
    with engine:
        found = model.generate(prompt(), **GREEDY)
        assert torch.equal(found, resident(low).generate(prompt(), **GREEDY))
    with pytest.raises(UserError, match=r"--expert_format int8.*--format int8"):
        load_with_cache(str(plain), settings, expert_format="int8")


@pytest.mark.parametrize("spec", ["int8", "int4:group=64", "nf4"])
@pytest.mark.parametrize("name", ["mxfp4", "plain", "packed-int4"])
def test_another_format_than_the_stored_one_is_refused_with_the_command_to_pack(spec, name):
    folder = checkpoint("olmoe") if name == "plain" else CHECKPOINTS[name]()
    message = f"--expert_format {spec}.*dwellmoe pack {folder}.*--format {spec}"
    with pytest.raises(UserError, match=message) as error:
        load_with_cache(str(folder), EngineSettings("3"), expert_format=spec)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "lost"),
    [
        ("mxfp4", "experts.down_proj_scales"),
        ("fp8-mixtral", "experts.1.w1.weight_scale_inv"),
        ("fp8-mixtral", "self_attn.q_proj.weight_scale_inv"),
    ],
)
def test_low_bits_without_their_scales_are_refused(name, lost, tmp_path):
    folder = shutil.copytree(CHECKPOINTS[name](), tmp_path / "m")
    tensors = load_file(folder / "model.safetensors")
    del tensors[next(name for name in tensors if name.endswith(lost))]
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(UserError, match=f"without (their|its) scales.*{lost}"):
        _engine(folder)


@pytest.mark.parametrize(("name", "kind"), [("mxfp4", Mxfp4), ("fp8-mixtral", BlockFp8)])
def test_a_format_that_the_device_cannot_compute_is_refused(name, kind, monkeypatch):
    def no_kernel(*_args, **_options):
        raise NotImplementedError("Could not run 'aten::index_select' with arguments\nmore")

    monkeypatch.setattr(kind, "product", no_kernel)
    with pytest.raises(UserError, match=f"experts in {kind.name} do not run on cpu.*Could not run") as error:
        _engine(CHECKPOINTS[name]())
    assert "\n" not in str(error.value)
