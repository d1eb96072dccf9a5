import copy

import pytest
import torch

import moe_distil
from moe_split import new_moe


@pytest.mark.slow
def test_an_interrupted_stage_goes_on_to_the_same_weights(dense, shape, rows, monkeypatch, tmp_path):
    """Experts included: transformers' Trainer alone would leave theirs as they were before the stage."""
    monkeypatch.setattr(moe_distil, "SAVE_STEPS", 4)
    begun = new_moe(dense, shape)
    whole, killed, resumed = (copy.deepcopy(begun) for _ in range(3))
    options = {"learning_rate": 1e-2, "seed": 0}
    moe_distil.distil(whole, dense, rows, tmp_path / "whole", **options)

    step = moe_distil.Distiller.training_step

    def killed_after_six_steps(trainer, *args, **more):
        if trainer.state.global_step == 6:
            raise KeyboardInterrupt
        return step(trainer, *args, **more)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(moe_distil.Distiller, "training_step", killed_after_six_steps)
        moe_distil.distil(killed, dense, rows, tmp_path / "killed", **options)
    moe_distil.distil(resumed, dense, rows, tmp_path / "killed", **options)

    trained = dict(begun.named_parameters())
    for name, weight in whole.named_parameters():
        torch.testing.assert_close(dict(resumed.named_parameters())[name], weight, rtol=0, atol=0)
        if "experts" in name:
            assert not torch.equal(weight, trained[name]), "a stage that trains nothing would pass"
