"""LocalityCallback in an unmodified Trainer trains exactly as LocalityTrainer does."""

from typing import Any

import pytest
import torch
from transformers import Trainer

from dwellmoe.data.collate import PaddingCollator
from dwellmoe.errors import UserError
from dwellmoe.families import find_moe_layers
from dwellmoe.locality.callback import LocalityCallback
from dwellmoe.locality.elastic_lora import LoraShape, add_elastic_lora
from dwellmoe.locality.settings import LocalitySettings
from tests.locality.test_loss import hooks
from tests.test_trainer import rows, settings
from tests.tiny_models import tiny_model
from trainer import LocalityTrainer

pytestmark = pytest.mark.slow

TEN_ROWS = 10  # with two a batch and accumulation over two, an epoch ends with an incomplete step


def adapted_model() -> Any:
    torch.manual_seed(0)
    model = tiny_model("olmoe")
    return add_elastic_lora(model, find_moe_layers(model), LoraShape(rank=2, extra=("gate",)))


def trained(folder, callback: LocalityCallback | None, locality: Any = None, **options):
    model = adapted_model()
    parts = {
        "train_dataset": rows(TEN_ROWS),
        "eval_dataset": rows(4, seed=1),
        "data_collator": PaddingCollator(0),
    }
    arguments = settings(
        folder, max_steps=6, learning_rate=1e-2, metric_for_best_model="eval_loss", **options
    )
    if callback:
        trainer = Trainer(model, arguments, callbacks=[callback], **parts)
    else:
        trainer = LocalityTrainer(model, arguments, locality=locality, **parts)
    trainer.train()
    return trainer


def trainable(trainer) -> dict[str, torch.Tensor]:
    return {name: weight for name, weight in trainer.model.named_parameters() if weight.requires_grad}


def logged(trainer, name: str) -> list[float]:
    return [entry[name] for entry in trainer.state.log_history if name in entry]


def assert_alike(found, expected, names: tuple[str, ...]) -> None:
    weights = trainable(found)
    assert all(torch.equal(weights[name], weight) for name, weight in trainable(expected).items())
    for name in names:
        assert logged(found, name) == logged(expected, name) != [], name


@pytest.mark.parametrize("parts", [1, 2])
@pytest.mark.parametrize(("objective", "on_prompt"), [("js", True), ("cache_miss:budget=50%", False)])
def test_the_adapter_equals_that_of_the_locality_trainer(tmp_path, parts, objective, on_prompt):
    locality = LocalitySettings(
        consecutive_expert_loss_type=objective,
        consecutive_expert_loss_weight=2.0,
        locality_on_prompt=on_prompt,
    )
    options = {"gradient_accumulation_steps": parts}
    callback = LocalityCallback(objective, weight=2.0, on_prompt=on_prompt)
    found = trained(tmp_path / "callback", callback, **options)
    expected = trained(tmp_path / "trainer", None, locality, **options)
    assert_alike(found, expected, ("locality_loss", "ecr", "locality_weight", "loss", "eval_ecr"))
    assert hooks(found.model) == hooks(adapted_model()), "a hook was left behind"


@pytest.mark.parametrize("target", [{"target_ecr": 0.6}, {"target_hit_rate": "lru@50%=0.9"}])
def test_a_target_adapts_the_weight_as_in_the_locality_trainer(tmp_path, target):
    locality = LocalitySettings(
        consecutive_expert_loss_type="js", consecutive_expert_loss_weight=0.1, **target
    )
    found = trained(tmp_path / "callback", LocalityCallback("js", weight=0.1, **target))
    expected = trained(tmp_path / "trainer", None, locality)
    assert_alike(found, expected, ("locality_weight",))
    assert len({*logged(found, "locality_weight")}) > 1


def test_a_resumed_run_goes_on_with_the_same_weight(tmp_path):
    options = {"save_strategy": "steps", "save_steps": 3, "eval_strategy": "no"}
    whole = trained(tmp_path / "whole", LocalityCallback("js", weight=0.1, target_ecr=0.6), **options)
    resumed = Trainer(
        adapted_model(),
        settings(tmp_path / "again", max_steps=6, learning_rate=1e-2, **options),
        train_dataset=rows(TEN_ROWS),
        data_collator=PaddingCollator(0),
        callbacks=[LocalityCallback("js", weight=0.1, target_ecr=0.6)],
    )
    resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-3"))
    assert logged(resumed, "locality_weight") == pytest.approx(logged(whole, "locality_weight"))


def test_a_model_that_returns_a_tuple_trains_alike(tmp_path):
    """Its loss is the first of its outputs."""
    weights = []
    for returns_dict in (True, False):
        torch.manual_seed(0)
        model = tiny_model("olmoe")
        trainer = Trainer(
            model,
            settings(tmp_path / str(returns_dict), eval_strategy="no"),
            train_dataset=rows(),
            data_collator=lambda batch, flag=returns_dict: PaddingCollator(0)(batch) | {"return_dict": flag},
            callbacks=[LocalityCallback("js", weight=5.0)],
        )
        trainer.train()
        weights.append(trainable(trainer))
    assert all(torch.equal(weight, weights[1][name]) for name, weight in weights[0].items())


def test_what_cannot_be_is_a_users_mistake(tmp_path):
    with pytest.raises(UserError, match="jss"):
        LocalityCallback("jss")
    with pytest.raises(UserError, match="weight"):
        LocalityCallback(weight=0.0, target_ecr=0.5)
    with pytest.raises(UserError, match="target_hit_rate"):
        LocalityCallback(target_ecr=0.5, target_hit_rate="lru@25%=0.5")
    with pytest.raises(UserError, match="label smoothing"):
        trained(tmp_path, LocalityCallback(), label_smoothing_factor=0.1)
