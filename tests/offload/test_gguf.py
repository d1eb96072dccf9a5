"""`dwellmoe pack --gguf`: experts in the bytes of a GGUF file, beside the rest of their own checkpoint."""

import os
import shutil

import pytest
import torch
from gguf import GGMLQuantizationType as Type
from gguf import GGUFReader
from gguf.quants import dequantize
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from dwellmoe.cli.main import run
from dwellmoe.errors import UserError
from tests.export.ggufs import write_gguf
from tests.offload.workbench import checkpoint, engine_of, prompt

LAYERS = 3
SIZES = {"hidden_size": 64, "intermediate_size": 96, "moe_intermediate_size": 96}
GATE, UP, DOWN = (f"ffn_{name}_exps" for name in ("gate", "up", "down"))


def checkpoint_of(family="olmoe", **overrides):
    """Rows of experts are whole blocks of 32."""
    return checkpoint(family, **SIZES, **overrides)


def in_types(**types):
    """A change of tensors: of each whose name holds a key, the type."""

    def change(name, values):
        found = next((kind for part, kind in types.items() if part in name), None)
        return values if found is None else (values, found)

    return change


def gguf_of(folder, path, change=None, parts=1):
    """A GGUF of a checkpoint, its experts in Q4_0 unless they are changed otherwise."""
    return write_gguf(folder, path, LAYERS, change or in_types(exps=Type.Q4_0), parts)


def pack(folder, out, gguf, *options):
    run(["pack", str(folder), str(out), "--gguf", str(gguf), *options])


def numbers_of(paths):
    """The experts' numbers in a GGUF, as the gguf package decodes them: (layer, name) -> [E, O, I]."""
    tensors = [tensor for path in paths for tensor in GGUFReader(path).tensors if "_exps" in tensor.name]
    return {
        (int(each.name.split(".")[1]), each.name.split(".")[2]): torch.tensor(
            dequantize(each.data, each.tensor_type)
        )
        for each in tensors
    }


def resident_with(folder, numbers):
    """The model in memory, its experts those of a GGUF."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    for layer, block in enumerate(model.model.layers):
        experts = block.mlp.experts
        gate_up = numbers.get((layer, "ffn_gate_up_exps"))
        if gate_up is None:
            gate_up = torch.cat([numbers[layer, GATE], numbers[layer, UP]], dim=1)
        experts.gate_up_proj.data = gate_up
        experts.down_proj.data = numbers[layer, DOWN]
    return model


FORMS = {
    "q4_0": in_types(exps=Type.Q4_0),
    "q8_0": in_types(exps=Type.Q8_0),
    "mixed": in_types(**{"blk.0.ffn_down_exps": Type.F16, "ffn_down_exps": Type.Q8_0, "exps": Type.Q4_0}),
    "bf16": in_types(exps=Type.BF16),
    "f32": in_types(exps=Type.F32),
}


@pytest.mark.parametrize("parts", [1, 3])
@pytest.mark.parametrize("form", FORMS)
def test_the_packed_experts_are_those_of_the_file(form, parts, tmp_path):
    folder = checkpoint_of()
    paths = gguf_of(folder, tmp_path / "model.gguf", FORMS[form], parts)
    assert len(paths) == parts
    pack(folder, tmp_path / "out", paths[-1])
    model, engine = engine_of("olmoe", tmp_path / "out")
    with engine, torch.no_grad():
        expected = resident_with(folder, numbers_of(paths))(prompt()).logits
        assert (model(prompt()).logits - expected).abs().max() <= 1e-4
        assert engine.reads_per_expert == 1


def test_records_are_the_bytes_of_the_file(tmp_path):
    folder = checkpoint_of()
    (path,) = gguf_of(folder, tmp_path / "model.gguf")
    pack(folder, tmp_path / "out", path)
    tensors = {tensor.name: tensor.data for tensor in GGUFReader(path).tensors}
    records = {
        name: tensor
        for file in (tmp_path / "out").glob("*.safetensors")
        for name, tensor in load_file(file).items()
        if name.endswith("records")
    }
    assert len(records) == LAYERS
    for layer in range(LAYERS):
        record = records[f"model.layers.{layer}.mlp.experts.records"][5].numpy().tobytes()
        for name in (GATE, UP, DOWN):
            assert tensors[f"blk.{layer}.{name}.weight"][5].tobytes() in record
        assert len(record) - 3 * tensors[f"blk.{layer}.{DOWN}.weight"][5].nbytes < 2 * 4096


def test_gate_and_up_joined_in_one_tensor(tmp_path):
    folder = checkpoint_of()
    paths = write_gguf(folder, tmp_path / "model.gguf", LAYERS, FORMS["q8_0"], joined=True)
    pack(folder, tmp_path / "out", paths[0])
    model, engine = engine_of("olmoe", tmp_path / "out")
    with engine, torch.no_grad():
        expected = resident_with(folder, numbers_of(paths))(prompt()).logits
        assert (model(prompt()).logits - expected).abs().max() <= 1e-4


@pytest.fixture
def good(tmp_path):
    return checkpoint_of(), gguf_of(checkpoint_of(), tmp_path / "good.gguf")[0]


def refused(folder, tmp_path, gguf, *options, match):
    with pytest.raises(UserError, match=match):
        pack(folder, tmp_path / "out", gguf, *options)
    out = tmp_path / "out"
    assert not out.exists() or not [path for path in out.iterdir() if path.suffix == ".safetensors"]


def test_a_gguf_of_another_architecture(tmp_path):
    other = checkpoint_of("qwen3_moe")
    (path,) = gguf_of(other, tmp_path / "qwen.gguf")
    refused(checkpoint_of(), tmp_path, path, match="qwen.gguf: architecture 'qwen3moe', .* 'olmoe'")


def test_a_gguf_of_other_weights(tmp_path, good):
    (path,) = gguf_of(checkpoint_of(seed=1), tmp_path / "other.gguf")
    refused(good[0], tmp_path, path, match="other.gguf: .* differs by .* another model or revision")


@pytest.mark.parametrize("part", ["ffn_gate_inp", "attn_v", "ffn_up_exps", "ffn_down_exps"])
def test_a_gguf_in_which_one_kind_of_tensor_is_another(part, tmp_path):
    """Experts in another order, for one: no type explains that."""

    def change(name, values):
        return values[::-1].copy() if part in name else values

    (path,) = gguf_of(checkpoint_of(), tmp_path / "changed.gguf", change)
    refused(checkpoint_of(), tmp_path, path, match="changed.gguf: .* differs by")


def test_a_gguf_of_fewer_layers_or_experts(tmp_path):
    (path,) = write_gguf(checkpoint_of(num_hidden_layers=2), tmp_path / "short.gguf", 2)
    refused(checkpoint_of(), tmp_path, path, match="layers 2, the checkpoint has 3")
    (path,) = gguf_of(checkpoint_of(num_experts=4, num_local_experts=4), tmp_path / "few.gguf")
    refused(
        checkpoint_of(),
        tmp_path,
        path,
        match=r"ffn_gate_exps.weight has shape \[4, 96, 64\], .*\[8, 96, 64\]",
    )


def test_a_type_of_which_experts_are_not_read(tmp_path):
    (path,) = gguf_of(checkpoint_of(), tmp_path / "q5.gguf", in_types(exps=Type.Q5_0))
    refused(checkpoint_of(), tmp_path, path, match="ffn_gate_exps.weight is Q5_0; .* Q8_0, Q4_0")
    mixed = in_types(ffn_gate_exps=Type.Q4_0, ffn_up_exps=Type.Q8_0)
    (path,) = gguf_of(checkpoint_of(), tmp_path / "two.gguf", mixed)
    refused(checkpoint_of(), tmp_path, path, match="ffn_gate_exps.weight is Q4_0 and Q8_0")


def test_a_truncated_file(tmp_path, good):
    folder, path = good
    for size in (path.stat().st_size - 5000, 400, 3, 0):
        os.truncate(path, size)
        refused(folder, tmp_path, path, match=f"{path}: (a truncated or damaged GGUF file|not a GGUF file)")


def test_a_split_file_that_lacks_a_part(tmp_path):
    paths = gguf_of(checkpoint_of(), tmp_path / "model.gguf", parts=3)
    paths[1].unlink()
    refused(checkpoint_of(), tmp_path, paths[0], match=f"{paths[1]}: missing")
    shutil.copy(paths[0], tmp_path / "alone.gguf")
    refused(checkpoint_of(), tmp_path, tmp_path / "alone.gguf", match="alone.gguf: part of a GGUF of 3 files")


def test_what_is_no_gguf(tmp_path):
    refused(checkpoint_of(), tmp_path, tmp_path / "none.gguf", match="none.gguf: cannot be read")
    refused(checkpoint_of(), tmp_path, tmp_path, match=f"{tmp_path}: ")
    refused(checkpoint_of(), tmp_path, "", match="--gguf ''")


def test_a_format_beside_a_gguf(tmp_path, good):
    refused(*good[:1], tmp_path, good[1], "--format", "int8", match="--gguf .* --format")


def test_experts_that_a_gguf_keeps_in_another_form(tmp_path, good):
    refused(checkpoint("gpt_oss"), tmp_path, good[1], match="architecture 'olmoe', .* 'gpt-oss'")


def test_a_folder_packed_from_another_file(tmp_path, good):
    folder, path = good
    pack(folder, tmp_path / "out", path)
    before = {each.name: each.read_bytes() for each in (tmp_path / "out").iterdir()}
    pack(folder, tmp_path / "out", path)  # nothing to do
    (other,) = gguf_of(folder, tmp_path / "q8.gguf", in_types(exps=Type.Q8_0))
    with pytest.raises(UserError, match="not empty"):
        pack(folder, tmp_path / "out", other)
    assert {each.name: each.read_bytes() for each in (tmp_path / "out").iterdir()} == before
