"""Checkpoints: which one a run goes on from when files are cut, changed or missing."""

import errno
import json

import pytest
from safetensors import SafetensorError

from dwellmoe.checkpoints import (
    CHECKSUMS,
    checkpoint_to_resume,
    checkpoints_kept,
    damage,
    remove_checkpoints,
    write_checksums,
)
from dwellmoe.errors import UserError
from dwellmoe.run_identity import RUN_FILE


def write_state(text):
    return lambda path: path.write_text(text)


def make_checkpoint(run, step):
    folder = run / f"checkpoint-{step}"
    (folder / "global_step").mkdir(parents=True)
    (folder / "trainer_state.json").write_text(json.dumps({"global_step": step}))
    (folder / "adapter_model.safetensors").write_bytes(bytes(range(200)))
    (folder / "global_step" / "rank_1.pt").write_bytes(bytes(100))
    (folder / RUN_FILE).write_text("{}")
    write_checksums(folder)
    return folder


def cut(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def change(path):
    path.write_bytes(bytes(len(path.read_bytes())))


FAULTS = [
    (cut, "adapter_model.safetensors"),
    (change, "adapter_model.safetensors"),
    (cut, "global_step/rank_1.pt"),
    (cut, "trainer_state.json"),
    (write_state("no JSON"), "trainer_state.json"),
    (write_state('["global_step"]'), "trainer_state.json"),
    (write_state('{"global_step": "8"}'), "trainer_state.json"),
    (lambda path: path.unlink(), "trainer_state.json"),
    (cut, CHECKSUMS),
    (lambda path: path.unlink(), CHECKSUMS),
    (lambda path: path.unlink(), "global_step/rank_1.pt"),
]


@pytest.mark.parametrize(("spoil", "name"), FAULTS)
def test_a_damaged_checkpoint_falls_back_to_the_one_before_and_is_named(tmp_path, capsys, spoil, name):
    first, last = make_checkpoint(tmp_path, 9), make_checkpoint(tmp_path, 10)
    assert checkpoint_to_resume(tmp_path, "auto", False) == last
    spoil(last / name)
    assert checkpoint_to_resume(tmp_path, "auto", False) == first
    said = capsys.readouterr().err
    assert str(last) in said and name.rpartition("/")[2] in said
    with pytest.raises(UserError, match="checkpoint-10"):
        checkpoint_to_resume(tmp_path, str(last), False)


@pytest.mark.parametrize("name", ["adapter_model.safetensors", "trainer_state.json"])
def test_where_every_checkpoint_is_damaged_nothing_is_overwritten(tmp_path, name):
    folder = make_checkpoint(tmp_path, 3)
    cut(folder / name)
    with pytest.raises(UserError, match="holds checkpoint-3"):
        checkpoint_to_resume(tmp_path, None, False)
    with pytest.raises(UserError, match="no checkpoint in"):
        checkpoint_to_resume(tmp_path, "auto", False)


def test_a_checkpoint_of_a_version_without_checksums_is_taken(tmp_path):
    folder = make_checkpoint(tmp_path, 3)
    (folder / CHECKSUMS).unlink()
    (folder / RUN_FILE).unlink()
    assert damage(folder) == ""


def test_what_a_killed_first_save_left_is_no_checkpoint(tmp_path):
    for name in ("checkpoint-3", "checkpoint-²"):
        (tmp_path / name).mkdir()
    assert checkpoint_to_resume(tmp_path, "auto", False) is None


@pytest.mark.parametrize("requested", [None, "auto"])
@pytest.mark.parametrize("name", ["README.md", "adapter_config.json", "config.json"])
def test_results_without_checkpoints_are_not_replaced_unasked(tmp_path, requested, name):
    """Of a run whose checkpoints were removed, or files of the user."""
    (tmp_path / name).write_text("mine")
    with pytest.raises(UserError, match=f"holds {name}"):
        checkpoint_to_resume(tmp_path, requested, False)
    assert checkpoint_to_resume(tmp_path, requested, True) is None


def test_only_checkpoints_are_removed(tmp_path):
    linked, kept = tmp_path / "elsewhere", tmp_path / "run" / "checkpoint-9-good"
    linked.mkdir()
    kept.mkdir(parents=True)
    make_checkpoint(tmp_path / "run", 9)
    (tmp_path / "run" / "checkpoint-10").symlink_to(linked)
    remove_checkpoints(tmp_path / "run")
    assert list((tmp_path / "run").iterdir()) == [kept] and linked.is_dir()


@pytest.mark.parametrize(
    ("raised", "told"),
    [
        (OSError(errno.ENOSPC, "No space left on device", "a.bin"), "a.bin: No space left on device"),
        (SafetensorError("IoError(Os { code: 28, kind: StorageFull })"), "No space left on device"),
        (RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 9 vs 8"), "a full disk"),
    ],
)  # fmt: skip
def test_a_checkpoint_that_cannot_be_written_is_removed_and_the_others_named(tmp_path, raised, told):
    make_checkpoint(tmp_path, 4)
    torn = tmp_path / "checkpoint-8"
    torn.mkdir()
    fault = f"checkpoint-8' cannot be written: .*{told}.*checkpoint-4"
    with pytest.raises(UserError, match=fault), checkpoints_kept(tmp_path, torn):
        raise raised
    assert not torn.exists()
