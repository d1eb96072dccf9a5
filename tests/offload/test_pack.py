"""Packed experts: one read each, the same answers, and nothing else than what they were packed from."""

import os
import shutil

import pytest
import torch

from dwellmoe.errors import UserError
from dwellmoe.offload.pack import INDEX, RECORDS, pack
from tests.offload.workbench import checkpoint, engine_of, prompt, resident


@pytest.mark.parametrize("family", ["gpt_oss", "olmoe"])
def test_packed_experts(family, tmp_path):
    pack(str(checkpoint(family)), tmp_path)
    model, engine = engine_of(family, packed=str(tmp_path))
    with engine, torch.no_grad():
        assert engine.reads_per_expert == 1
        assert (model(prompt()).logits - resident(family)(prompt()).logits).abs().max() <= 1e-5


def test_a_pack_that_does_not_belong(tmp_path):
    with pytest.raises(UserError, match="no packed experts"):
        engine_of("olmoe", packed=str(tmp_path))
    pack(str(checkpoint("olmoe")), tmp_path)
    with pytest.raises(UserError, match="another checkpoint"):
        engine_of("mixtral", packed=str(tmp_path))
    os.truncate(tmp_path / RECORDS, 100)
    with pytest.raises(UserError, match="truncated"):
        engine_of("olmoe", packed=str(tmp_path))
    (tmp_path / INDEX).write_text("{}")
    with pytest.raises(UserError, match="no packed experts"):
        engine_of("olmoe", packed=str(tmp_path))


def test_a_broken_checkpoint_leaves_no_pack(tmp_path):
    folder = shutil.copytree(checkpoint("olmoe"), tmp_path / "broken")
    os.truncate(folder / "model.safetensors", 30_000)
    with pytest.raises(UserError, match="truncated"):
        pack(str(folder), tmp_path / "pack")
    assert not (tmp_path / "pack").exists()
