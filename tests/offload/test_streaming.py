"""Experts streamed while training: losses and gradients, what is read when, budgets, and lost files."""

import shutil
from collections import Counter

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import PeftModelForCausalLM
from safetensors.torch import load_file, save_file

from dwellmoe.errors import UserError
from dwellmoe.experts import use_expert_lora
from dwellmoe.experts.weights import ATTRIBUTE
from dwellmoe.families import expert_bytes, find_moe_layers
from dwellmoe.families.base import unwrap
from dwellmoe.loading import load_model, load_streamed_model
from dwellmoe.locality.elastic_lora import LoraShape, add_elastic_lora
from dwellmoe.offload import ReadFault
from dwellmoe.offload.expert_stream import ExpertStream
from dwellmoe.offload.slots import bytes_of_slot
from dwellmoe.offload.stream_loading import slots_of
from dwellmoe.offload.visit_order import VisitOrder
from dwellmoe.settings.model import ModelSettings
from tests.experts.low_bit_checkpoints import fp8_checkpoint, mxfp4_checkpoint
from tests.offload.workbench import checkpoint, packed, prompt
from tests.tiny_models import tiny_model

FAMILIES = [
    "olmoe",
    "qwen3_moe",
    "gpt_oss",
    "deepseek_v3",
    "mixtral",
    "llama4_text",
    "longcat_flash",
    "ernie4_5_moe",
]
LOW_BITS = {
    "mxfp4": mxfp4_checkpoint,
    "fp8": lambda: fp8_checkpoint("deepseek_v3"),
    "packed-int4": lambda: packed("gpt_oss", "int4:group=32"),
}
EXPERTS, LAYERS = 8, 3
"""Of the tiny models."""
ONE_LAYER = f"{100 / LAYERS + 0.01:.2f}%"


def _tuned(
    folder,
    budget=None,
    dtype="float32",
    layers=slice(None),
    targets=("auto",),
    checkpointed=True,
    expert_format=None,
):
    """A model with random LoRA, its experts streamed where a budget is given."""
    given = ModelSettings(model_name=str(folder), dtype=dtype, expert_format=expert_format)
    model = load_streamed_model(given, budget) if budget else load_model(given)
    torch.manual_seed(0)
    tuned = add_elastic_lora(model, find_moe_layers(model)[layers], LoraShape(rank=2, targets=targets))
    use_expert_lora(tuned)
    for name, weight in tuned.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.05)
    if checkpointed:
        model.activation_checkpointing_enable({"use_reentrant": False})
        model.disable_input_require_grads()
    return tuned.train()


def _step(model, ids):
    """The loss and the gradients of what is trained."""
    model.zero_grad()
    loss = model(ids, labels=ids, use_cache=False).loss
    loss.backward()
    return loss.detach(), {name: w.grad for name, w in model.named_parameters() if w.requires_grad}


def _stream(model) -> ExpertStream:
    experts = unwrap(model.get_submodule(find_moe_layers(model)[0].experts))
    return getattr(experts, ATTRIBUTE).stream


def _assert_same(found, expected):
    torch.testing.assert_close(found[0], expected[0], atol=1e-5, rtol=1e-5)
    assert found[1].keys() == expected[1].keys()
    for name, gradient in expected[1].items():
        torch.testing.assert_close(found[1][name], gradient, atol=1e-5, rtol=1e-5, msg=name)


@pytest.fixture
def reads(monkeypatch) -> Counter[int]:
    """Layer -> experts of it that were read."""
    counts: Counter[int] = Counter()
    begin = ExpertStream._begin_read

    def counting(stream, flat_id, *args, **kwargs):
        counts[stream._layer_of[flat_id]] += 1
        begin(stream, flat_id, *args, **kwargs)

    monkeypatch.setattr(ExpertStream, "_begin_read", counting)
    return counts


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_losses_and_gradients_are_those_of_experts_in_memory(family):
    streamed, resident = _tuned(checkpoint(family), "50%"), _tuned(checkpoint(family))
    for seed in range(2):
        ids = prompt(rows=2, seed=seed)
        _assert_same(_step(streamed, ids), _step(resident, ids))


@pytest.mark.slow
@pytest.mark.parametrize("checkpointed", [True, False])
@pytest.mark.parametrize("expert_format", ["as_stored", None])
@pytest.mark.parametrize("name", LOW_BITS)
def test_low_bits_train_as_in_memory(name, expert_format, checkpointed):
    folder = LOW_BITS[name]()
    streamed = _tuned(folder, "50%", checkpointed=checkpointed, expert_format=expert_format)
    resident = _tuned(folder, checkpointed=checkpointed, expert_format="as_stored")
    for seed in range(2):
        ids = prompt(rows=2, seed=seed)
        _assert_same(_step(streamed, ids), _step(resident, ids))
    layers, others = find_moe_layers(streamed), find_moe_layers(resident)
    assert expert_bytes(streamed, layers[0]) <= expert_bytes(resident, others[0])
    slot_bytes = bytes_of_slot(_stream(streamed).weights.record_bytes[0])
    assert _stream(streamed).slot_bytes == EXPERTS * len(layers) // 2 * slot_bytes


@pytest.mark.parametrize("checkpointed", [True, False])
@pytest.mark.parametrize("targets", [("gate",), ("attention",), ("down_proj",)])
def test_any_part_trains_in_the_upper_layers(targets, checkpointed):
    """At the lowest trained layer some products have no gradient."""
    given = {"layers": slice(1, None), "targets": targets, "checkpointed": checkpointed}
    streamed, resident = _tuned(checkpoint("olmoe"), ONE_LAYER, **given), _tuned(checkpoint("olmoe"), **given)
    _assert_same(_step(streamed, prompt(rows=2)), _step(resident, prompt(rows=2)))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_checkpoint_of_another_type_is_converted_expert_by_expert(dtype):
    folder = checkpoint("olmoe", torch.bfloat16)
    found, expected = (_step(_tuned(folder, budget, dtype), prompt(rows=2)) for budget in ("50%", None))
    if dtype == "float32":
        _assert_same(found, expected)
    torch.testing.assert_close(found[0], expected[0], atol=1e-2, rtol=1e-2)


def test_forward_reads_each_layer_once_and_backward_once_more(reads):
    """With room for one layer: the last one is still there when the backward pass begins."""
    model = _tuned(checkpoint("olmoe"), ONE_LAYER)
    ids = prompt(tokens=60, rows=4)
    _step(model, ids)
    assert reads == {0: 2 * EXPERTS, 1: 2 * EXPERTS, 2: EXPERTS}
    _step(model, ids)
    assert reads == {0: 3 * EXPERTS, 1: 4 * EXPERTS, 2: 2 * EXPERTS}
    assert _stream(model).read_bytes == sum(reads.values()) * _stream(model).weights.record_bytes[0]


def test_nothing_is_read_below_the_lowest_trained_layer(reads, monkeypatch):
    visited, visit = [], ExpertStream.visit

    def noting(stream, layer, experts, training, backward):
        visited.append((layer, backward))
        return visit(stream, layer, experts, training, backward)

    monkeypatch.setattr(ExpertStream, "visit", noting)
    model = _tuned(checkpoint("olmoe"), ONE_LAYER, layers=slice(2, 3))
    for step in range(1, 4):
        _step(model, prompt(tokens=60, rows=4))
        assert sum(reads.values()) <= (LAYERS * step + 1) * EXPERTS  # and layer 0 of the next batch
    assert {layer for layer, backward in visited if backward} == {2}


def test_only_experts_that_the_batch_uses_are_read_again(reads):
    model = _tuned(checkpoint("olmoe"), ONE_LAYER)
    ids = torch.tensor([[5]])  # one token, so two experts a layer
    for _ in range(2):
        with torch.no_grad():
            model(ids)
    reads.clear()
    with torch.no_grad():
        model(ids)
    assert not reads


def test_validation_and_the_model_without_its_adapter():
    streamed, resident = _tuned(checkpoint("olmoe"), ONE_LAYER), _tuned(checkpoint("olmoe"))
    ids = prompt(rows=2)
    with torch.no_grad():
        torch.testing.assert_close(streamed.eval()(ids).logits, resident.eval()(ids).logits)
        with streamed.disable_adapter(), resident.disable_adapter():
            torch.testing.assert_close(streamed(ids).logits, resident(ids).logits)
    _assert_same(_step(streamed.train(), ids), _step(resident.train(), ids))


def test_the_adapter_is_one_that_plain_peft_loads(tmp_path):
    streamed, ids = _tuned(checkpoint("qwen3_moe"), "50%"), prompt()
    streamed.save_pretrained(tmp_path)
    base = load_model(ModelSettings(model_name=str(checkpoint("qwen3_moe")), dtype="float32"))
    plain = PeftModelForCausalLM.from_pretrained(base, tmp_path)
    with torch.no_grad():
        torch.testing.assert_close(plain.eval()(ids).logits, streamed.eval()(ids).logits)


def test_no_expert_is_a_parameter_and_the_slots_are_within_the_budget():
    model = _tuned(checkpoint("olmoe"), "256KiB")
    assert not any("experts" in name and "lora" not in name for name, _ in model.named_parameters())
    assert _stream(model).slot_bytes <= 256 << 10


def test_a_file_cut_while_in_use_is_named(tmp_path):
    tiny_model("olmoe").save_pretrained(tmp_path)
    model = _tuned(tmp_path, ONE_LAYER)
    _step(model, prompt(rows=2))
    shard = tmp_path / "model.safetensors"
    with open(shard, "r+b") as file:
        file.truncate(shard.stat().st_size // 2)
    with pytest.raises(ReadFault, match=r"model\.safetensors"):
        _step(model, prompt(rows=2))


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_an_expert_that_is_not_finite_is_named(value, tmp_path):
    tiny_model("olmoe").save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    tensors["model.layers.1.mlp.experts.3.up_proj.weight"][0, 0] = value
    save_file(tensors, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(UserError, match=r"model\.safetensors.*layers\.1\.mlp\.experts, expert 3,"):
        _step(_tuned(tmp_path, "50%"), prompt(tokens=60, rows=4))


@pytest.mark.parametrize(
    ("name", "ending", "value"),
    [
        ("mxfp4", "layers.1.mlp.experts.down_proj_scales", 255),
        ("fp8", "layers.1.mlp.experts.3.up_proj.weight_scale_inv", torch.nan),
        ("fp8", "layers.1.mlp.experts.3.down_proj.weight", torch.nan),
    ],
)
def test_low_bits_that_are_not_finite_are_named(name, ending, value, tmp_path):
    folder = shutil.copytree(LOW_BITS[name](), tmp_path / "m")
    tensors = load_file(folder / "model.safetensors")
    (found,) = [tensor for name, tensor in tensors.items() if name.endswith(ending)]
    (found[3] if name == "mxfp4" else found)[0, 0] = value
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(UserError, match=r"model\.safetensors.*layers\.1\.mlp\.experts, expert 3,"):
        _step(_tuned(folder, "50%"), prompt(tokens=60, rows=4))


@pytest.mark.parametrize("spec", ["int8", "int4:group=32"])
def test_another_format_than_the_stored_one_is_refused_with_the_command_to_pack(spec):
    with pytest.raises(UserError, match=f"--expert_format {spec}.*dwellmoe pack .*--format {spec}") as error:
        _tuned(checkpoint("olmoe"), "50%", expert_format=spec)
    assert "\n" not in str(error.value)


@given(
    num_experts=st.lists(st.integers(1, 64), min_size=1, max_size=5),
    slot_bytes=st.integers(1, 1 << 20),
    budget_bytes=st.integers(1, 1 << 26),
)
def test_a_budget_in_bytes_pays_for_its_slots_or_is_refused(num_experts, slot_bytes, budget_bytes):
    affordable = budget_bytes // slot_bytes
    if affordable < max(num_experts):
        with pytest.raises(UserError, match="--expert_budget"):
            slots_of(f"{budget_bytes}B", num_experts, slot_bytes)
    else:
        assert slots_of(f"{budget_bytes}B", num_experts, slot_bytes) == min(affordable, sum(num_experts))


@pytest.mark.parametrize(
    ("budget", "slots"), [("50%", 12), ("4", 12), ("100%", 24), ("33.4%", 8), ("33.3%", None), ("2", None)]
)
def test_other_budgets(budget, slots):
    if slots is None:
        with pytest.raises(UserError, match=f"--expert_budget {budget}.*needs the 8 of a layer.*1MiB"):
            slots_of(budget, [EXPERTS] * LAYERS, 4096)
    else:
        assert slots_of(budget, [EXPERTS] * LAYERS, 4096) == slots


def test_a_budget_beyond_the_machine_is_refused():
    with pytest.raises(UserError, match="this machine has"):
        slots_of("100%", [64] * 64, 1 << 40)


@settings(deadline=None)
@given(data=st.data(), layers=st.integers(1, 6))
def test_the_next_visit_is_that_of_the_sequence(data, layers):
    lowest = data.draw(st.integers(0, layers - 1))
    step = [
        *((layer, False) for layer in range(layers)),
        *((layer, True) for layer in reversed(range(lowest, layers))),
    ]
    order = VisitOrder(layers)
    order.lowest = lowest
    for now, (layer, backward) in enumerate(step):
        order.enter(layer, training=True, backward=backward)
        later = [each for each, _ in step[now + 1 :] + step]
        assert [order.steps_until(each) for each in range(layers)] == [
            later.index(each) + 1 for each in range(layers)
        ]
    order.enter(0, training=False, backward=False)
    assert order.upcoming() == [*range(1, layers), 0]
