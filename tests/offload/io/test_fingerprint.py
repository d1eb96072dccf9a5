"""Fingerprint of a checkpoint: the same for the same tensors, another for any other weights."""

import tracemalloc

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

from dwellmoe.offload.io import fingerprint, shards
from dwellmoe.offload.io.fingerprint import (
    PIECE_BYTES,
    WHOLE_BYTES,
    _pieces,
    checkpoint_fingerprint,
)
from tests.tiny_models import tiny_model

TENSORS = {"a": torch.arange(12.0).reshape(3, 4), "b": torch.linspace(0, 1, 50_000), "c": torch.zeros(0)}


def fingerprint_of(folder, tensors):
    folder.mkdir(exist_ok=True)
    save_file(tensors, folder / "model.safetensors")
    return checkpoint_fingerprint(str(folder))


def test_the_same_tensors_in_other_files_have_one_fingerprint(tmp_path):
    model = tiny_model("olmoe")
    model.save_pretrained(tmp_path / "one")
    model.save_pretrained(tmp_path / "shards", max_shard_size="50KB")
    assert len(list((tmp_path / "shards").glob("*.safetensors"))) > 1
    assert checkpoint_fingerprint(str(tmp_path / "one")) == checkpoint_fingerprint(str(tmp_path / "shards"))


@pytest.mark.parametrize(
    "changed",
    [
        {"a": TENSORS["a"].reshape(4, 3)},
        {"a": TENSORS["a"].view(torch.int32)},
        {"a": TENSORS["a"] + torch.eye(3, 4)},
        {"b": TENSORS["b"] * 1.001},
        {"b": TENSORS["b"].flip(0)},
        {"b": TENSORS["b"].clone().index_fill_(0, torch.tensor([12345]), 0.5)},
        {"d": TENSORS["a"].clone()},
    ],
    ids=["shape", "dtype", "small", "scaled", "order", "one number", "one more"],
)
def test_another_checkpoint_has_another_fingerprint(tmp_path, changed):
    assert fingerprint_of(tmp_path, TENSORS) != fingerprint_of(tmp_path, TENSORS | changed)


def test_a_large_tensor_is_never_in_memory_as_a_whole(tmp_path, monkeypatch):
    chunk_bytes, tensors = 1 << 20, {"large": torch.arange(4_000_000, dtype=torch.float32)}
    monkeypatch.setattr(shards, "CHUNK_BYTES", chunk_bytes)
    tracemalloc.start()
    found = fingerprint_of(tmp_path, tensors)
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak_bytes < 6 * chunk_bytes < tensors["large"].nbytes
    monkeypatch.setattr(shards, "CHUNK_BYTES", 1000)
    in_small_chunks = fingerprint.fingerprint(shards.find_shards(str(tmp_path)))
    assert in_small_chunks == fingerprint.weights_fingerprint(str(tmp_path))
    assert found == checkpoint_fingerprint(str(tmp_path))


@given(st.text(max_size=8), st.integers(0, 40 * WHOLE_BYTES))
def test_pieces_lie_inside_the_tensor_and_are_the_same_every_time(name, nbytes):
    pieces = list(_pieces(name, nbytes))
    assert pieces == list(_pieces(name, nbytes))
    assert all(begin >= 0 and begin + length <= nbytes for begin, length in pieces)
    whole = nbytes <= WHOLE_BYTES
    assert sum(length for _, length in pieces) == (nbytes if whole else 16 * PIECE_BYTES)
