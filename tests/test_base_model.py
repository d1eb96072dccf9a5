"""An adapter is used on the base model that it was trained on, whatever its folder is called."""

import json
import shutil

import pytest
from safetensors.torch import load_file, save_file

from dwellmoe.base_model import BASE_FILE, base_model, check_base_model
from dwellmoe.errors import UserError


@pytest.fixture
def adapter(tmp_path, tiny_checkpoint):
    folder = tmp_path / "adapter"
    folder.mkdir()
    (folder / BASE_FILE).write_text(json.dumps(base_model(str(tiny_checkpoint))._asdict()))
    return folder


@pytest.fixture
def other(tmp_path, tiny_checkpoint):
    """Another base model: the same shapes, one tensor scaled by a little."""
    shutil.copytree(tiny_checkpoint, tmp_path / "other")
    path = tmp_path / "other" / "model.safetensors"
    tensors = load_file(path)
    name = next(name for name in tensors if name.endswith("mlp.gate.weight"))
    save_file(tensors | {name: tensors[name] * 1.001}, path, {"format": "pt"})
    return tmp_path / "other"


def test_the_own_base_is_taken_from_any_folder(adapter, tmp_path, tiny_checkpoint, capsys):
    shutil.copytree(tiny_checkpoint, tmp_path / "moved")
    check_base_model([str(adapter)], str(tmp_path / "moved"), allow_other=False)
    assert not capsys.readouterr().err


def test_another_base_is_refused_with_both_fingerprints_unless_allowed(
    adapter, other, tiny_checkpoint, capsys
):
    wanted, found = (base_model(str(folder)).fingerprint for folder in (tiny_checkpoint, other))
    with pytest.raises(UserError, match=f"{wanted}.*{found}.*--allow_other_base"):
        check_base_model([str(adapter)], str(other), allow_other=False)
    check_base_model([str(adapter)], str(other), allow_other=True)
    assert wanted in capsys.readouterr().err


def test_an_adapter_without_a_record_is_used_and_that_is_said(tmp_path, tiny_checkpoint, capsys):
    check_base_model([str(tmp_path)], str(tiny_checkpoint), allow_other=False)
    assert str(tmp_path) in capsys.readouterr().err


@pytest.mark.parametrize("text", ["", "[]", '{"name": "x"}', "\xff"])
def test_a_broken_record_is_refused(adapter, tiny_checkpoint, text):
    (adapter / BASE_FILE).write_bytes(text.encode("latin-1"))
    with pytest.raises(UserError, match=BASE_FILE):
        check_base_model([str(adapter)], str(tiny_checkpoint), allow_other=False)


@pytest.mark.parametrize(
    ("change", "refused"), [({"num_experts_per_tok": 1}, True), ({"transformers_version": "9"}, False)]
)
def test_the_same_weights_under_another_configuration_are_another_base(
    adapter, tmp_path, tiny_checkpoint, change, refused
):
    folder = shutil.copytree(tiny_checkpoint, tmp_path / "changed")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | change))
    if not refused:
        check_base_model([str(adapter)], str(folder), allow_other=False)
        return
    with pytest.raises(UserError, match="configuration"):
        check_base_model([str(adapter)], str(folder), allow_other=False)
