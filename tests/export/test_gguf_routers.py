"""`dwellmoe export gguf-routers`: routers of a quantised GGUF replaced, every other byte kept."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType, GGUFReader
from safetensors.torch import load_file, save_file

from dwellmoe.cli.main import run
from dwellmoe.errors import UserError
from dwellmoe.export import patching
from dwellmoe.export.gguf_routers import KEY
from tests.export.ggufs import write_gguf
from tests.tiny_models import tiny_model

LAYERS = 3
GATE = "blk.1.ffn_gate_inp.weight"


def export(adapter, base, *options):
    run(["export", "gguf-routers", "--adapter", str(adapter), "--base", str(base), *map(str, options)])


@pytest.fixture(params=["router_adapter", "router_file"])
def tuned(request):
    """An adapter of routers: its folder, and the file that it is exported to."""
    return request.getfixturevalue(request.param)


@pytest.fixture
def base(tiny_checkpoint, tmp_path):
    return write_gguf(tiny_checkpoint, tmp_path / "base-Q8_0.gguf", LAYERS)[0]


def tensors(path):
    return {tensor.name: tensor for tensor in GGUFReader(path).tensors}


def check_patched(before, after, merged):
    """The routers are the merged ones, every other tensor has the bytes and type that it had."""
    old, new = tensors(before), tensors(after)
    assert list(old) == list(new)
    for name, tensor in new.items():
        assert tensor.tensor_type == old[name].tensor_type
        assert tensor.data_offset % 32 == 0
        if "ffn_gate_inp" in name:
            expected = merged[f"model.layers.{name.split('.')[1]}.mlp.gate.weight"].float().numpy()
            assert np.array_equal(tensor.data, expected) and not np.array_equal(tensor.data, old[name].data)
        else:
            assert np.array_equal(tensor.data, old[name].data)


def test_the_routers_are_replaced_and_nothing_else(base, tuned, router_adapter, merged_weights, tmp_path):
    out = tmp_path / "tuned.gguf"
    before = base.read_bytes()
    export(tuned, base, "--out", out)
    check_patched(base, out, merged_weights(router_adapter))
    assert base.read_bytes() == before
    old, new = GGUFReader(base).fields, GGUFReader(out).fields
    assert new.keys() - old.keys() == {KEY}
    assert all(old[name].contents() == new[name].contents() for name in old if not name.startswith("GGUF."))
    assert {GGMLQuantizationType.Q8_0, GGMLQuantizationType.F32} <= {
        each.tensor_type for each in tensors(out).values()
    }
    note = json.loads(new[KEY].contents())
    assert note["adapter"] == tuned.name and len(note["tensors"]) == LAYERS


def test_a_file_in_place_differs_in_its_routers_alone(
    base, tuned, router_adapter, merged_weights, tmp_path, capsys
):
    copy = tmp_path / "copy.gguf"
    copy.write_bytes(base.read_bytes())
    export(tuned, copy, "--in_place")
    check_patched(base, copy, merged_weights(router_adapter))
    assert "metadata" in capsys.readouterr().out
    changed = np.frombuffer(base.read_bytes(), np.uint8) != np.frombuffer(copy.read_bytes(), np.uint8)
    places = [
        (int(each.data_offset), int(each.data_offset) + int(each.n_bytes))
        for each in tensors(base).values()
        if "ffn_gate_inp" in each.name
    ]
    assert changed.sum() == sum(changed[begin:end].sum() for begin, end in places) > 0


def test_a_killed_run_in_place_is_finished_by_the_next(base, tuned, router_adapter, merged_weights, tmp_path):
    copy = tmp_path / "copy.gguf"
    done = merged_weights(router_adapter)["model.layers.1.mlp.gate.weight"].numpy().tobytes()
    content = bytearray(base.read_bytes())
    begin = int(tensors(base)[GATE].data_offset)
    content[begin : begin + len(done)] = done
    copy.write_bytes(content)
    with pytest.raises(UserError, match=f"{GATE} .*tuned values already"):
        export(tuned, copy, "--out", tmp_path / "out.gguf")
    export(tuned, copy, "--in_place")
    check_patched(base, copy, merged_weights(router_adapter))


@pytest.mark.parametrize("in_place", [True, False])
def test_every_part_of_a_split_file_is_patched(
    in_place, tuned, tiny_checkpoint, router_adapter, merged_weights, tmp_path
):
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    whole = write_gguf(tiny_checkpoint, tmp_path / "a" / "whole.gguf", LAYERS)[0]
    parts = write_gguf(tiny_checkpoint, tmp_path / "b" / "m.gguf", LAYERS, parts=4)
    assert len(parts) == 4
    if in_place:
        export(tuned, parts[2], "--in_place")
        after = parts
    else:
        export(tuned, parts[0], "--out", tmp_path / "tuned.gguf")
        after = [tmp_path / f"tuned-{number:05d}-of-00004.gguf" for number in range(1, 5)]
        assert [KEY in GGUFReader(path).fields for path in after] == [True, False, False, False]
        assert len([*tmp_path.glob("*.gguf")]) == 4
    merged, old = merged_weights(router_adapter), tensors(whole)
    new = {name: tensor for path in after for name, tensor in tensors(path).items()}
    assert new.keys() == old.keys()
    for name, tensor in new.items():
        expected = (
            merged[f"model.layers.{name.split('.')[1]}.mlp.gate.weight"].numpy()
            if "gate_inp" in name
            else old[name].data
        )
        assert np.array_equal(tensor.data, expected)


def test_another_architecture_has_its_own_names(make_adapter, merged_weights, tmp_path):
    model = tmp_path / "qwen"
    tiny_model("qwen3_moe").save_pretrained(model)
    base = write_gguf(model, tmp_path / "base.gguf", LAYERS)[0]
    adapter = make_adapter(model)
    export(adapter, base, "--out", tmp_path / "tuned.gguf")
    check_patched(base, tmp_path / "tuned.gguf", merged_weights(adapter, model))


def test_files_are_copied_whole_where_the_kernel_copies_nothing(
    base, router_adapter, merged_weights, tmp_path, monkeypatch
):
    def refuse(*_):
        raise OSError(patching.errno.EXDEV, "other file system")

    export(router_adapter, base, "--out", tmp_path / "one.gguf")
    monkeypatch.setattr(os, "copy_file_range", refuse)
    monkeypatch.setattr(patching, "CHUNK_BYTES", 1000)
    export(router_adapter, base, "--out", tmp_path / "two.gguf")
    assert (tmp_path / "one.gguf").read_bytes() == (tmp_path / "two.gguf").read_bytes()


def scaled(name, values):
    return values * 1.0001 if name == GATE else values


def permuted(name, values):
    return values[::-1].copy() if name == GATE else values


def transposed(name, values):
    return values.T.copy() if name == GATE else values


def blank(name, values):
    return np.zeros_like(values) if name == GATE else values


def half(name, values):
    return (values, GGMLQuantizationType.F16) if name == GATE else values


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (scaled, f"{GATE} is not .*another base"),
        (permuted, f"{GATE} is not .*another order"),
        (transposed, f"{GATE} is not .*transposed"),
        (blank, f"{GATE} is not .*another base"),
        (half, f"{GATE} is stored as F16"),
    ],
)
@pytest.mark.parametrize("options", [("--in_place",), ("--out", "OUT")])
def test_a_gguf_with_other_routers_is_refused(change, message, options, tuned, tiny_checkpoint, tmp_path):
    path = write_gguf(tiny_checkpoint, tmp_path / "base.gguf", LAYERS, change)[0]
    before = path.read_bytes()
    with pytest.raises(UserError, match=message) as error:
        export(tuned, path, *(str(tmp_path / "o.gguf") if each == "OUT" else each for each in options))
    assert "\n" not in str(error.value)
    assert [*tmp_path.iterdir()] == [path] and path.read_bytes() == before


def test_the_router_of_another_layer_is_named(tuned, tiny_checkpoint, tmp_path):
    stored = load_file(tiny_checkpoint / "model.safetensors")
    other = "model.layers.2.mlp.gate.weight"

    def swapped(name, values):
        return stored[other].numpy() if name == GATE else values

    path = write_gguf(tiny_checkpoint, tmp_path / "base.gguf", LAYERS, swapped)[0]
    with pytest.raises(UserError, match=f"{GATE} is not .*it is '{other}'"):
        export(tuned, path, "--in_place")


CHECKED = """
import sys
from dwellmoe.cli.main import run
run(sys.argv[1:])
print(*{"torch", "transformers", "peft"} & {*sys.modules})
"""


@pytest.mark.parametrize("options", [["--in_place"], ["--out", "out.gguf"]])
def test_a_file_of_routers_needs_no_torch(options, base, router_file, tmp_path):
    words = ["export", "gguf-routers", "--adapter", router_file, "--base", base, *options]
    done = subprocess.run(
        [sys.executable, "-c", CHECKED, *words], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    *_, replaced, imported = done.stdout.split("\n")[:-1]
    assert replaced.startswith(f"{LAYERS} tensors") and not imported


@pytest.mark.parametrize(
    ("command", "options", "message"),
    [
        ("gguf-routers", "--in_place --lora_out l.gguf", "--lora_out l.gguf: .*holds no LoRA"),
        ("gguf-routers", "--in_place --model_name m", "--model_name: "),
        ("gguf-routers", "--in_place --allow_other_base True", "--allow_other_base: "),
        ("gguf-routers", "--out FILE", "--out .*tuned.safetensors: is the file of --adapter"),
        ("router", "--out o", "--adapter .*tuned.safetensors: a file, expected the folder"),
        ("adapter", "--layout per_expert --out o", "--adapter .*tuned.safetensors: a file"),
        ("hf", "--out o", "--adapter .*tuned.safetensors: a file"),
        ("gguf", "--out o", "--adapter .*tuned.safetensors: a file"),
    ],
)
def test_what_a_file_of_routers_cannot_give_is_refused(
    command, options, message, base, router_file, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    before = base.read_bytes(), router_file.read_bytes()
    words = options.replace("FILE", str(router_file)).split()
    given = ["--base", str(base)] if command == "gguf-routers" else []
    with pytest.raises(UserError, match=message):
        run(["export", command, "--adapter", str(router_file), *given, *words])
    assert (base.read_bytes(), router_file.read_bytes()) == before and [*tmp_path.iterdir()] == [base]


def test_another_file_is_no_file_of_routers(base, router_adapter, tmp_path):
    before = base.read_bytes()
    half = tmp_path / "half.safetensors"
    save_file({"a": torch.zeros(2, dtype=torch.bfloat16)}, half)
    for path, message in (
        (router_adapter / "adapter_model.safetensors", "no file of tuned routers"),
        (half, "no file of tuned routers"),
        (base, "not a .safetensors file"),
        (tmp_path / "none.safetensors", "cannot be read: No such file"),
    ):
        with pytest.raises(UserError, match=f"{path}: {message}"):
            export(path, base, "--in_place")
    assert base.read_bytes() == before


def cut(path):
    path.write_bytes(path.read_bytes()[:-100])


def cut_in_the_header(path):
    path.write_bytes(path.read_bytes()[:300])


def cut_in_the_tokens(path):
    path.write_bytes(path.read_bytes()[: path.read_bytes().index("ü".encode()) + 4])


def empty(path):
    path.write_bytes(b"")


def text(path):
    path.write_text("no model")


def magic_alone(path):
    path.write_bytes(b"GGUF")


def many_tensors(path):
    content = bytearray(path.read_bytes())
    content[8:16] = b"\xff" * 8
    path.write_bytes(content)


def big_endian(path):
    content = bytearray(path.read_bytes())
    content[4:8] = content[4:8][::-1]
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (cut, "truncated or damaged"),
        (cut_in_the_header, "truncated or damaged"),
        (cut_in_the_tokens, "truncated or damaged"),
        (empty, "not a GGUF"),
        (text, "not a GGUF"),
        (magic_alone, "truncated or damaged"),
        (many_tensors, "truncated or damaged"),
        (big_endian, "big-endian|truncated or damaged"),
        (os.remove, "cannot be read"),
    ],
)
def test_a_damaged_file_is_refused_in_one_line(spoil, message, base, router_adapter, tmp_path):
    spoil(base)
    with pytest.raises(UserError, match=message) as error:
        export(router_adapter, base, "--out", tmp_path / "o.gguf")
    assert "\n" not in str(error.value) and str(base) in str(error.value)
    assert not (tmp_path / "o.gguf").exists()


def test_a_missing_part_is_named(tiny_checkpoint, router_adapter, tmp_path):
    parts = write_gguf(tiny_checkpoint, tmp_path / "m.gguf", LAYERS, parts=3)
    parts[1].unlink()
    with pytest.raises(UserError, match=f"{parts[1].name}: missing"):
        export(router_adapter, parts[0], "--out", tmp_path / "o.gguf")
    parts[0].rename(tmp_path / "renamed.gguf")
    with pytest.raises(UserError, match="part of a GGUF of 3 files"):
        export(router_adapter, tmp_path / "renamed.gguf", "--out", tmp_path / "o.gguf")


def test_a_dense_model_and_a_patched_one_are_refused(tiny_checkpoint, base, router_adapter, tmp_path):
    out = tmp_path / "tuned.gguf"
    export(router_adapter, base, "--out", out)
    with pytest.raises(UserError, match="replaced before"):
        export(router_adapter, out, "--out", tmp_path / "again.gguf")
    dense = tmp_path / "dense.gguf"
    dense.write_bytes(base.read_bytes().replace(b"ffn_gate_inp", b"ffn_gate_xyz"))
    with pytest.raises(UserError, match=r"no routers .*'olmoe'"):
        export(router_adapter, dense, "--out", tmp_path / "again.gguf")


def test_a_model_with_fewer_layers_is_another_one(
    make_adapter, tiny_checkpoint, router_adapter, base, tmp_path
):
    model = tmp_path / "deeper"
    tiny_model("olmoe", num_hidden_layers=4).save_pretrained(model)
    with pytest.raises(UserError, match=r"has no tensor for|is not '"):
        export(make_adapter(model), base, "--out", tmp_path / "o.gguf")


@pytest.mark.parametrize("options", [(), ("--in_place", "--out", "x.gguf"), ("--out", "BASE")])
def test_the_target_must_be_clear(options, base, router_adapter):
    before = base.read_bytes()
    with pytest.raises(UserError, match="--in_place"):
        export(router_adapter, base, *(base if each == "BASE" else each for each in options))
    assert base.read_bytes() == before


def test_a_full_disk_leaves_nothing(base, router_adapter, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(patching.errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "copy_file_range", full)
    with pytest.raises(UserError, match=r"tuned.gguf: cannot be written: No space left"):
        export(router_adapter, base, "--out", tmp_path / "tuned.gguf")
    assert [*tmp_path.iterdir()] == [base]


def test_a_full_disk_leaves_no_half_lora(base, attention_adapter, tmp_path, monkeypatch):
    def full(writer):
        raise OSError("1536 requested and 168 written")  # as numpy puts it

    monkeypatch.setattr("dwellmoe.export.gguf_lora.GGUFWriter.write_tensors_to_file", full)
    with pytest.raises(UserError, match=r"l\.gguf: cannot be written: 1536 requested"):
        export(attention_adapter, base, "--out", tmp_path / "o.gguf", "--lora_out", tmp_path / "l.gguf")
    assert [*tmp_path.iterdir()] == [base]


def test_attention_goes_beside_it_as_a_lora_of_llama_cpp(
    base, attention_adapter, tiny_checkpoint, merged_weights, tmp_path, capsys
):
    """Its matrices, with the scale as llama.cpp computes it, are what PEFT adds to the base."""
    export(attention_adapter, base, "--out", tmp_path / "tuned.gguf", "--lora_out", tmp_path / "lora.gguf")
    assert "not carried over" not in capsys.readouterr().err
    reader = GGUFReader(tmp_path / "lora.gguf")
    field = {name: field.contents() for name, field in reader.fields.items()}
    assert (field["general.type"], field["adapter.type"], field["general.architecture"]) == (
        "adapter",
        "lora",
        "olmoe",
    )
    found = {tensor.name: np.array(tensor.data) for tensor in reader.tensors}
    merged, plain = merged_weights(attention_adapter), load_file(tiny_checkpoint / "model.safetensors")
    assert len(found) == 2 * 4 * LAYERS
    for stored, ours in (("q_proj", "attn_q"), ("o_proj", "attn_output")):
        a, b = (found[f"blk.2.{ours}.weight.lora_{letter}"] for letter in "ab")
        name = f"model.layers.2.self_attn.{stored}.weight"
        added = torch.from_numpy(field["adapter.lora.alpha"] / len(a) * b @ a)
        torch.testing.assert_close(added, merged[name] - plain[name], atol=1e-6, rtol=1e-4)


def test_attention_in_another_order_is_refused(tiny_checkpoint, attention_adapter, tmp_path):
    def permute(name, values):
        return np.concatenate([values[::2], values[1::2]]) if name == "blk.0.attn_q.weight" else values

    path = write_gguf(tiny_checkpoint, tmp_path / "base.gguf", LAYERS, permute)[0]
    with pytest.raises(UserError, match=r"blk.0.attn_q.weight .*another order"):
        export(attention_adapter, path, "--out", tmp_path / "o.gguf", "--lora_out", tmp_path / "l.gguf")
    assert [*tmp_path.iterdir()] == [path]


@pytest.mark.parametrize("taken", ["base-Q8_0.gguf", "o.gguf"])
def test_the_lora_file_is_another_one(taken, base, attention_adapter, tmp_path):
    with pytest.raises(UserError, match="--lora_out"):
        export(attention_adapter, base, "--out", tmp_path / "o.gguf", "--lora_out", tmp_path / taken)
    assert [*tmp_path.iterdir()] == [base]


def test_what_is_lost_is_said(base, whole_adapter, tmp_path, capsys):
    export(whole_adapter, base, "--out", tmp_path / "t.gguf", "--lora_out", tmp_path / "l.gguf")
    said = capsys.readouterr().err
    assert "experts" in said and "attention" not in said
    export(whole_adapter, base, "--out", tmp_path / "u.gguf")
    assert "--lora_out" in capsys.readouterr().err
