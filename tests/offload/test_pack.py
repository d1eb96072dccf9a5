"""Packed experts: one read each, the same answers, and nothing else than what they were packed from."""

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from dwellmoe.cli import pack as command
from dwellmoe.errors import UserError
from dwellmoe.folder_lock import only_writer
from dwellmoe.offload.pack import INDEX, RECORDS, pack
from tests.offload.workbench import checkpoint, engine_of, prompt, resident

pytestmark = pytest.mark.slow


def changed_copy(family: str, folder: Path, part: str) -> Path:
    """A checkpoint with files of the same names and sizes, in which one kind of tensor is another."""
    folder = Path(shutil.copytree(checkpoint(family), folder))
    weights = load_file(folder / "model.safetensors")
    changed = {name: weight + (part in name) for name, weight in weights.items()}
    save_file(changed, folder / "model.safetensors", {"format": "pt"})
    return folder


@pytest.mark.parametrize("family", ["gpt_oss", "olmoe"])
def test_packed_experts(family, tmp_path):
    pack(str(checkpoint(family)), tmp_path)
    model, engine = engine_of(family, packed=str(tmp_path))
    with engine, torch.no_grad():
        assert engine.reads_per_expert == 1
        assert (model(prompt()).logits - resident(family)(prompt()).logits).abs().max() <= 1e-5
    assert {path.name for path in tmp_path.iterdir()} == {INDEX, RECORDS}


def test_a_pack_that_does_not_belong(tmp_path):
    with pytest.raises(UserError, match="no packed experts"):
        engine_of("olmoe", packed=str(tmp_path))
    pack(str(checkpoint("olmoe")), tmp_path)
    with pytest.raises(UserError, match="another checkpoint"):
        engine_of("mixtral", packed=str(tmp_path))
    os.truncate(tmp_path / RECORDS, 100)
    with pytest.raises(UserError, match="truncated"):
        engine_of("olmoe", packed=str(tmp_path))
    for text in ("{}", "[]", "", '{"version": 2}'):
        (tmp_path / INDEX).write_text(text)
        with pytest.raises(UserError, match="no packed experts"):
            engine_of("olmoe", packed=str(tmp_path))


@pytest.mark.parametrize("family", ["gpt_oss", "olmoe"])
def test_a_pack_of_other_weights_of_the_same_sizes_is_refused(family, tmp_path):
    packed = tmp_path / "pack"
    pack(str(changed_copy(family, tmp_path / "other", ".experts.")), packed)
    held = json.loads((packed / INDEX).read_text())["experts"]
    pack(str(checkpoint(family)), tmp_path / "own")
    wanted = json.loads((tmp_path / "own" / INDEX).read_text())["experts"]
    with pytest.raises(UserError, match=f"{packed}: .*another checkpoint.*{held}.*{wanted}.*pack .* again"):
        engine_of(family, packed=str(packed))


def test_a_pack_serves_a_checkpoint_with_the_same_experts_and_other_routers(tmp_path):
    pack(str(checkpoint("olmoe")), tmp_path / "pack")
    _, engine = engine_of(
        "olmoe", changed_copy("olmoe", tmp_path / "routers", ".gate."), packed=str(tmp_path / "pack")
    )
    engine.close()


def test_the_records_of_another_pack_are_refused(tmp_path):
    for name, folder in (
        ("a", checkpoint("olmoe")),
        ("b", changed_copy("olmoe", tmp_path / "o", ".experts.")),
    ):
        pack(str(folder), tmp_path / name)
    shutil.copy(tmp_path / "b" / RECORDS, tmp_path / "a")
    with pytest.raises(UserError, match=f"{RECORDS}: changed since it was packed"):
        engine_of("olmoe", packed=str(tmp_path / "a"))


def test_a_pack_of_an_earlier_version_is_to_be_made_again(tmp_path):
    pack(str(checkpoint("olmoe")), tmp_path)
    (tmp_path / INDEX).write_text(json.dumps({"version": 1, "source": [], "layers": []}))
    with pytest.raises(UserError, match=r"another version.*\(1, not 2\).*again"):
        engine_of("olmoe", packed=str(tmp_path))


def test_a_broken_checkpoint_leaves_no_pack(tmp_path):
    folder = shutil.copytree(checkpoint("olmoe"), tmp_path / "broken")
    os.truncate(folder / "model.safetensors", 30_000)
    with pytest.raises(UserError, match="truncated"):
        pack(str(folder), tmp_path / "pack")
    assert not (tmp_path / "pack").exists()


def test_packing_that_is_stopped_leaves_nothing_that_looks_whole(tmp_path, monkeypatch):
    pack(str(checkpoint("olmoe")), tmp_path)
    part = tmp_path / f".{RECORDS}.1.part"
    part.touch()  # of a process that was killed

    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("dwellmoe.offload.pack._fingerprint", stop)  # between the records and their index
    with pytest.raises(KeyboardInterrupt):
        pack(str(checkpoint("olmoe")), tmp_path)
    assert not part.exists()
    with pytest.raises(UserError, match="no packed experts"):
        engine_of("olmoe", packed=str(tmp_path))


def test_only_one_process_packs_into_a_folder(tmp_path):
    with only_writer(tmp_path), pytest.raises(UserError, match=f"{tmp_path}.*being written"):
        pack(str(checkpoint("olmoe")), tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("out", ["file", "file/below", "/proc/pack"])
def test_a_folder_that_cannot_be_written_is_named(tmp_path, out):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=out):
        pack(str(checkpoint("olmoe")), tmp_path / out)


def test_experts_that_would_not_fit_are_not_begun(tmp_path, monkeypatch):
    full = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr("dwellmoe.offload.pack.shutil.disk_usage", lambda _: full)
    with pytest.raises(UserError, match=f"{tmp_path}.* 1,000 are free"):
        pack(str(checkpoint("olmoe")), tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_pack_without_a_folder_is_refused(tmp_path, monkeypatch):
    """As `dwellmoe pack MODEL "$UNSET"` would be, which is not meant for the current folder."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="OUT ''"):
        command.run([str(checkpoint("olmoe")), ""])
    assert not list(tmp_path.iterdir())
