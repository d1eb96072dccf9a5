"""Which targets there are, how they are measured, and when a router counts as collapsed."""

import json
from dataclasses import replace

import numpy as np
import pytest

from dwellmoe.cache.replay.replay import replay
from dwellmoe.cache.trace import RoutingTrace
from dwellmoe.errors import UserError
from dwellmoe.families import MoeLayer
from dwellmoe.locality.monitor import collapsed_layers, experts_used, refuse_collapse
from dwellmoe.locality.rates import ecr_per_layer
from dwellmoe.locality.targets import Target, control_losses, target_of

LAYER = MoeLayer(0, 3, "mlp", "mlp.gate", "mlp.experts", "attention", (), num_experts=8, top_k=2)


def trace():
    draw = np.random.default_rng(0)
    experts = np.stack([draw.permutation(8)[:2] for _ in range(120)]).reshape(60, 2, 2).astype(np.uint16)
    return RoutingTrace(experts, np.ones(60, np.uint8), np.zeros(60, np.int32), num_experts=8)


def test_targets_measure_what_the_simulator_does():
    assert Target("ecr", 0.4).measure(trace()) == pytest.approx(ecr_per_layer(trace()).mean())
    wanted = target_of(None, "lrfu:decay=0.9@50%=0.8", None)
    assert (wanted.policy, wanted.capacity, wanted.value) == ("lrfu:decay=0.9", "50%", 0.8)
    assert wanted.measure(trace()) == replay(trace(), "lrfu:decay=0.9", 4).hit_rate


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            (0.4, "lru@25%=0.8", None),
            "--target_ecr and --target_hit_rate: one weight can follow only one target",
        ),
        ((1.5, None, None), "a rate lies between 0 and 1"),
        ((None, "lru25%=0.8", None), "expected POLICY@CAPACITY=RATE"),
        ((None, "lrux@25%=0.8", None), "unknown policy 'lrux'"),
        ((None, "lru@25q=0.8", None), "capacity '25q'"),
        ((None, "lru@25%=x", None), "a rate lies between 0 and 1"),
        ((None, None, 0.0), "must be above 0"),
    ],
)
def test_a_target_that_cannot_be_is_a_users_mistake(given, message):
    with pytest.raises(UserError, match=message):
        target_of(*given)


def test_checkpoints_that_meet_the_target_come_first():
    target = Target("ecr", 0.5)
    losses = {"eval_lm_loss": 4.0}
    met, slightly_worse, far = (
        target.score(value, metrics)
        for value, metrics in ((0.49, losses), (0.52, {"eval_lm_loss": 4.1}), (0.3, {"eval_lm_loss": 3.0}))
    )
    assert met < slightly_worse < far


def test_a_collapse_names_the_layer():
    used = experts_used(trace())
    assert used.sum(-1).tolist() == [8, 8]
    other = replace(LAYER, index=1, layer_id=9)
    assert not collapsed_layers([LAYER], [4], tokens=100)
    assert not collapsed_layers([LAYER], [1], tokens=7)
    assert collapsed_layers([LAYER, other], [3, 8], tokens=100) == [LAYER]
    assert collapsed_layers([LAYER, other], [8, 2], tokens=100) == [other]
    with pytest.raises(UserError, match=r"layer 3 has collapsed: 3 of 8 experts .* before training 8"):
        refuse_collapse(LAYER, 3, used_before=8)
    with pytest.raises(UserError, match=r"layer 9 has collapsed: .* before training not counted"):
        refuse_collapse(other, 2, used_before=None)


def test_a_collapse_from_before_the_training_is_not_blamed_on_it(capsys):
    refuse_collapse(LAYER, 2, used_before=3)
    assert "layer 3 had collapsed before training: 3 of 8" in capsys.readouterr().err


def test_losses_of_a_control_run(tmp_path):
    for content in ("", "[" * 100_000, "[]"):
        (tmp_path / "training_summary.json").write_text(content)
        with pytest.raises(UserError, match="no readable training_summary"):
            control_losses(str(tmp_path))
    history = [{"step": 8, "eval_lm_loss": 3.5}, {"step": 4, "eval_lm_loss": 4}, {"step": 2}]
    (tmp_path / "training_summary.json").write_text(json.dumps({"log_history": history}))
    assert control_losses(str(tmp_path)) == [(4, 4.0), (8, 3.5)]
