"""Which files of a folder are the checkpoint: the same for a model in memory and for one in a cache."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from dwellmoe.errors import UserError
from dwellmoe.offload.io.shards import check_checkpoint, find_shards
from tests.offload.workbench import checkpoint

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
FIRST, SECOND = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"


@pytest.fixture
def sharded(tmp_path) -> Path:
    """A checkpoint in two shards."""
    folder = Path(shutil.copytree(checkpoint("olmoe"), tmp_path / "sharded"))
    weights = load_file(folder / SINGLE)
    shard_of = {name: SECOND if "down_proj" in name else FIRST for name in weights}
    for shard in (FIRST, SECOND):
        save_file({name: weights[name] for name in weights if shard_of[name] == shard}, folder / shard)
    (folder / INDEX).write_text(json.dumps({"weight_map": shard_of}))
    (folder / SINGLE).unlink()
    return folder


def read_names(folder: Path) -> list[str]:
    check_checkpoint(str(folder))
    return [path.name for path in find_shards(str(folder)).paths]


def test_a_folder_of_two_checkpoints_is_refused(sharded):
    assert read_names(sharded) == [FIRST, SECOND]
    shutil.copy(checkpoint("olmoe") / SINGLE, sharded)
    for check in (find_shards, check_checkpoint):
        with pytest.raises(UserError, match=f"is two: {SINGLE}, and .* {INDEX}"):
            check(str(sharded))


def test_an_index_whose_shards_are_gone_counts_for_nothing(sharded, capsys):
    shutil.copy(checkpoint("olmoe") / SINGLE, sharded)
    for shard in (FIRST, SECOND):
        (sharded / shard).unlink()
    assert read_names(sharded) == [SINGLE]
    assert INDEX in capsys.readouterr().err


def test_an_index_of_the_one_file_is_no_second_checkpoint(tmp_path):
    folder = Path(shutil.copytree(checkpoint("olmoe"), tmp_path / "one"))
    (folder / INDEX).write_text(json.dumps({"weight_map": dict.fromkeys(load_file(folder / SINGLE), SINGLE)}))
    assert read_names(folder) == [SINGLE]


def test_a_shard_that_the_index_does_not_name_is_said(sharded, capsys):
    stray = "model-00003-of-00003.safetensors"
    save_file({"stray": torch.ones(1)}, sharded / stray)
    assert read_names(sharded) == [FIRST, SECOND]
    assert stray in capsys.readouterr().err


@pytest.mark.parametrize("equal", [True, False])
def test_a_tensor_in_two_shards(sharded, equal):
    weights, name = load_file(sharded / SECOND), "model.norm.weight"
    save_file({**weights, name: load_file(sharded / FIRST)[name] + (not equal)}, sharded / SECOND)
    if equal:
        assert read_names(sharded) == [FIRST, SECOND]
        return
    for check in (find_shards, check_checkpoint):
        with pytest.raises(UserError, match=f"'{name}' is in .*{FIRST} and.*{SECOND}"):
            check(str(sharded))


def test_an_adapter_beside_the_weights_is_refused(sharded):
    (sharded / "adapter_config.json").write_text("{}")
    for check in (find_shards, check_checkpoint):
        with pytest.raises(UserError, match=r"adapter_config\.json"):
            check(str(sharded))


@pytest.mark.parametrize("name", ["pytorch_model.bin", "pytorch_model.bin.index.json"])
def test_pickled_weights_are_not_read_in_place(tmp_path, name):
    (tmp_path / name).touch()
    check_checkpoint(str(tmp_path))
    with pytest.raises(UserError, match="pickled"):
        find_shards(str(tmp_path))
