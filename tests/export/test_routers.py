"""`dwellmoe export router` and `dwellmoe apply`: the routers alone, put on a copy of the base."""

import errno
import json
import os
import shutil

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from dwellmoe.adapter_folder import ADAPTER_WEIGHTS
from dwellmoe.base_model import BASE_FILE, base_model
from dwellmoe.cli.main import run
from dwellmoe.errors import UserError
from dwellmoe.export.router_file import checksum
from dwellmoe.loading import load_model
from dwellmoe.settings.model import ModelSettings
from tests.tiny_models import tiny_model

GATE = "model.layers.1.mlp.gate.weight"


def apply(routers, model, out):
    run(["apply", str(routers), "--model_name", str(model), "--out", str(out)])
    return load_file(out / "model.safetensors")


def test_the_file_holds_the_merged_routers_and_names_their_base(
    router_file, router_adapter, tiny_checkpoint, merged_weights
):
    tuned, merged, base = (
        load_file(router_file),
        merged_weights(router_adapter),
        load_file(tiny_checkpoint / "model.safetensors"),
    )
    assert tuned.keys() == {name for name in base if "mlp.gate" in name}
    assert all(
        torch.equal(values, merged[name]) and not torch.equal(values, base[name])
        for name, values in tuned.items()
    )
    with safe_open(router_file, "pt") as file:
        metadata = file.metadata()
    assert metadata["base_fingerprint"] == base_model(str(tiny_checkpoint)).fingerprint
    assert json.loads(metadata["replaces"]) == {name: checksum(base[name].numpy()) for name in tuned}


def test_applied_routers_make_the_merged_model(
    router_file, router_adapter, tiny_checkpoint, merged_weights, tmp_path
):
    found, merged = apply(router_file, tiny_checkpoint, tmp_path / "out"), merged_weights(router_adapter)
    assert found.keys() == merged.keys()
    assert all(torch.equal(found[name], merged[name]) for name in merged)
    assert "Tuned routers" in (tmp_path / "out" / "README.md").read_text()
    assert {path.name for path in tiny_checkpoint.iterdir()} <= {
        path.name for path in (tmp_path / "out").iterdir()
    }


def test_a_sharded_copy_in_another_type_is_a_copy_of_the_base(router_file, tiny_checkpoint, tmp_path, capsys):
    """Its numbers of routers are the same; they keep the type of the copy."""
    copy = tmp_path / "copy"
    model = load_model(ModelSettings(model_name=str(tiny_checkpoint)))
    model.double().save_pretrained(copy, max_shard_size="40KB")
    run(["apply", str(router_file), "--model_name", str(copy), "--out", str(tmp_path / "out")])
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())["weight_map"]
    found = load_file(tmp_path / "out" / index[GATE])[GATE]
    assert torch.equal(found, load_file(router_file)[GATE].double())
    assert "differs elsewhere" in capsys.readouterr().err


def test_routers_are_exported_from_and_put_on_a_packed_base(
    router_file, router_adapter, tiny_checkpoint, tmp_path
):
    """The adapter was trained on the checkpoint that was packed. Its checksums hold afterwards, too."""
    packed, out = tmp_path / "packed", tmp_path / "out"
    run(["pack", str(tiny_checkpoint), str(packed), "--format", "int8"])
    file = tmp_path / "tuned.safetensors"
    given = ("--adapter", str(router_adapter), "--model_name", str(packed), "--out", str(file))
    run(["export", "router", *given])
    assert all(torch.equal(load_file(file)[name], values) for name, values in load_file(router_file).items())
    run(["apply", str(file), "--model_name", str(packed), "--out", str(out)])
    assert torch.equal(load_file(min(out.glob("packed-*")))[GATE], load_file(router_file)[GATE])
    run(["pack", "--check", str(out)])
    assert base_model(str(out)).fingerprint != base_model(str(packed)).fingerprint
    for command, option in (("hf", ()), ("adapter", ("--layout", "per_expert"))):
        with pytest.raises(UserError, match=f"'{packed}' is packed.*--model_name"):
            run(["export", command, *given[:4], "--out", str(tmp_path / command), *option])


def test_only_changed_layers_are_held(make_adapter, tiny_checkpoint, tmp_path):
    adapter, out = make_adapter(tiny_checkpoint, layers=slice(1, 2)), tmp_path / "r.safetensors"
    run(["export", "router", "--adapter", str(adapter), "--out", str(out)])
    assert load_file(out).keys() == {GATE}


@pytest.mark.parametrize("family", ["mixtral", "gpt_oss", "deepseek_v3", "qwen2_moe", "granitemoe"])
def test_routers_of_other_families_go_by_the_names_of_the_checkpoint(
    family, make_adapter, merged_weights, tmp_path
):
    base, out = tmp_path / "base", tmp_path / "r.safetensors"
    tiny_model(family).save_pretrained(base)
    adapter = make_adapter(base)
    run(["export", "router", "--adapter", str(adapter), "--out", str(out)])
    merged = merged_weights(adapter, base)
    found = apply(out, base, tmp_path / "out")
    assert all(torch.equal(found[name], merged[name]) for name in merged)
    assert load_file(out)


@pytest.mark.parametrize(
    ("adapter", "lost"),
    [
        ("router_adapter", ()),
        ("attention_adapter", ("attention",)),
        ("whole_adapter", ("attention", "experts")),
    ],
)
def test_what_is_not_carried_is_said(adapter, lost, request, tmp_path, capsys):
    folder = request.getfixturevalue(adapter)
    run(["export", "router", "--adapter", str(folder), "--out", str(tmp_path / "r.safetensors")])
    said = capsys.readouterr().err
    assert ("not carried over" in said) == bool(lost) and all(part in said for part in lost)


def changed_gate(folder):
    tensors = load_file(folder / "model.safetensors")
    save_file(tensors | {GATE: tensors[GATE] * 1.001}, folder / "model.safetensors", {"format": "pt"})


def without_gate(folder):
    tensors = load_file(folder / "model.safetensors")
    save_file(
        {name: each for name, each in tensors.items() if name != GATE},
        folder / "model.safetensors",
        {"format": "pt"},
    )


@pytest.mark.parametrize(
    ("spoil", "message"),
    [(changed_gate, f"{GATE}' is not the tensor"), (without_gate, f"no tensor '{GATE}'")],
)
def test_another_base_is_refused_and_nothing_is_written(
    spoil, message, router_file, tiny_checkpoint, tmp_path
):
    shutil.copytree(tiny_checkpoint, tmp_path / "other")
    spoil(tmp_path / "other")
    with pytest.raises(UserError, match=message):
        apply(router_file, tmp_path / "other", tmp_path / "out")
    assert {path.name for path in tmp_path.iterdir()} == {"other"}


def test_a_full_disk_leaves_no_half_model(router_file, tiny_checkpoint, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "copy_file_range", full)
    with pytest.raises(UserError, match="out: cannot be written: No space left"):
        apply(router_file, tiny_checkpoint, tmp_path / "out")
    assert not [*tmp_path.iterdir()]


def test_the_tuned_model_is_no_base(router_file, tiny_checkpoint, tmp_path):
    apply(router_file, tiny_checkpoint, tmp_path / "out")
    with pytest.raises(UserError, match="tuned values already"):
        apply(router_file, tmp_path / "out", tmp_path / "again")


def test_other_files_are_no_routers(tiny_checkpoint, tmp_path):
    save_file({"a": torch.zeros(2)}, tmp_path / "r.safetensors")
    with pytest.raises(UserError, match="no file of tuned routers"):
        apply(tmp_path / "r.safetensors", tiny_checkpoint, tmp_path / "out")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"version": "7"}, "version '7'"),
        ({"replaces": "{"}, "does not say which"),
        ({"replaces": "{}"}, "names other tensors"),
    ],
)
def test_metadata_that_cannot_be_is_refused(change, message, router_file, tiny_checkpoint, tmp_path):
    with safe_open(router_file, "pt") as file:
        metadata = file.metadata()
    save_file(load_file(router_file), tmp_path / "r.safetensors", metadata | change)
    with pytest.raises(UserError, match=message):
        apply(tmp_path / "r.safetensors", tiny_checkpoint, tmp_path / "out")


def test_a_base_that_moved_is_asked_for(router_adapter, tiny_checkpoint, tmp_path):
    shutil.copytree(router_adapter, adapter := tmp_path / "adapter")
    record = json.loads((adapter / BASE_FILE).read_text())
    (adapter / BASE_FILE).write_text(json.dumps(record | {"name": str(tmp_path / "gone" / "base")}))
    command = ["export", "router", "--adapter", str(adapter), "--out", str(tmp_path / "r.safetensors")]
    with pytest.raises(UserError, match=r"gone/base.*--model_name"):
        run(command)
    run([*command, "--model_name", str(tiny_checkpoint)])
    assert (tmp_path / "r.safetensors").exists()


def test_the_adapter_itself_is_not_overwritten(router_adapter):
    out = router_adapter / ADAPTER_WEIGHTS
    before = out.read_bytes()
    with pytest.raises(UserError, match="--out"):
        run(["export", "router", "--adapter", str(router_adapter), "--out", str(out)])
    assert out.read_bytes() == before


def test_a_folder_that_holds_something_is_refused(router_file, tiny_checkpoint, tmp_path):
    (tmp_path / "mine.txt").write_text("x")
    with pytest.raises(UserError, match=r"--out .* not empty"):
        apply(router_file, tiny_checkpoint, tmp_path)


def test_an_adapter_without_routers_is_refused(make_adapter, tiny_checkpoint, tmp_path):
    adapter = make_adapter(tiny_checkpoint, ["attention"])
    with pytest.raises(UserError, match="changes no router"):
        run(["export", "router", "--adapter", str(adapter), "--out", str(tmp_path / "r.safetensors")])
    assert not list(tmp_path.iterdir())
