"""Settings that cannot be together, and values that cannot be."""

import itertools

import pytest

from config import parse_run
from dwellmoe.errors import UserError
from dwellmoe.locality.command_line import parse_training
from dwellmoe.locality.settings import LocalitySettings
from dwellmoe.settings.model import ModelSettings


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"locality_schedule": "cosine"}, "--locality_schedule cosine: choose from constant, linear"),
        ({"balance_scope": "token"}, "--balance_scope token: choose from batch, sequence, global"),
        ({"distillation_weight": -1.0}, "--distillation_weight -1.0: must be at least 0"),
        ({"target_ecr": 0.5, "consecutive_expert_loss_weight": 0.0}, "above 0 to start from"),
        ({"quality_reference": "out"}, "--quality_reference needs --quality_budget"),
        ({"quality_budget": 0.1, "locality_schedule": "linear"}, "leave --locality_schedule out"),
    ],
)
def test_a_wrong_setting_is_a_users_mistake(given, message):
    with pytest.raises(UserError, match=message):
        LocalitySettings(**given)


@pytest.mark.parametrize("key", ["/../x", "..", "a/b", "a\nb"])
def test_a_label_in_folder_names_names_no_other_folder(key):
    with pytest.raises(UserError, match="--model_key must be the name of a file"):
        ModelSettings(model_key=key)


STEPS = {
    "eval_strategy": (None, "no", "steps", "epoch"),
    "eval_steps": (None, "7", "200", "0.1"),
    "save_strategy": (None, "no", "epoch", "best"),
    "save_steps": (None, "200", "21", "0.2"),
}
"""Option -> what a user may give, None: nothing."""


@pytest.mark.parametrize("eval_strategy", STEPS["eval_strategy"])
@pytest.mark.parametrize("save_strategy", STEPS["save_strategy"])
def test_when_to_validate_and_save_can_be_given_in_any_way(
    eval_strategy, save_strategy, tmp_path, monkeypatch
):
    """The project's defaults give way; what the user gave stays, and transformers accepts the whole."""
    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", "")
    for eval_steps, save_steps in itertools.product(STEPS["eval_steps"], STEPS["save_steps"]):
        values = {
            "eval_strategy": eval_strategy,
            "eval_steps": eval_steps,
            "save_strategy": save_strategy,
            "save_steps": save_steps,
        }
        given = {name: value for name, value in values.items() if value is not None}
        words = [word for name, value in given.items() for word in (f"--{name}", value)]
        train = parse_run([*words, "--lora_save_path", str(tmp_path)]).train
        for name, value in given.items():
            found = getattr(train, name)
            assert found == type(found)(value), (name, words)
        if train.load_best_model_at_end and train.save_strategy != "best":
            assert train.eval_strategy == train.save_strategy != "no"


@pytest.mark.parametrize(
    ("words", "changed"),
    [
        ("--save_steps 200", "--eval_steps 200"),
        ("--eval_steps 300", "--save_steps 600"),
        ("--eval_strategy epoch", "--save_strategy epoch"),
        ("--save_strategy epoch", "--eval_strategy epoch"),
        ("--eval_strategy no", "--load_best_model_at_end False"),
        ("--eval_strategy epoch --save_steps 20", "--load_best_model_at_end False"),
        ("--eval_steps 100", None),
        ("--eval_strategy no --load_best_model_at_end False", None),
    ],
)
def test_a_default_that_gives_way_is_said(words, changed, capsys, monkeypatch):
    monkeypatch.setattr("dwellmoe.log._warned", set())
    parse_training(words.split())
    said = capsys.readouterr().err
    assert (f"note: {changed}: " in said) if changed else said == ""


@pytest.mark.parametrize("words", ["--eval_strategy no", "--save_steps 3 --eval_steps 2"])
def test_the_best_checkpoint_cannot_be_kept_unvalidated(words):
    with pytest.raises(UserError, match=f"--load_best_model_at_end True .*{words.split()[0]}"):
        parse_training([*words.split(), "--load_best_model_at_end", "True"])


@pytest.mark.parametrize("name", ["eval_steps", "save_steps", "logging_steps"])
def test_steps_above_one_are_whole(name):
    with pytest.raises(UserError, match=f"--{name} 2.5: "):
        parse_training([f"--{name}", "2.5"])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--metric_for_best_model accuracy", "unknown --metric_for_best_model 'accuracy'"),
        ("--metric_for_best_model target_error", "only measured with a target"),
        ("--metric_for_best_model hit_rate_target --target_ecr 0.5", "only measured with a target"),
        ("--output_dir elsewhere", "--output_dir elsewhere: a run's folder is named by --lora_save_path"),
        ("--lora_save_path=", "--lora_save_path is empty"),
        ("--lora_save_path models/tiny-olmoe", "is the folder of the base model"),
        ("--lr_scheduler_kwargs abc", "--lr_scheduler_kwargs abc: must be a JSON object"),
    ],
)
def test_what_cannot_be_is_refused(words, message):
    with pytest.raises(UserError, match=message):
        parse_run(words.split())


@pytest.mark.parametrize(("metric", "higher_is_better"), [("ecr", True), ("eval_lm_loss", False)])
def test_the_best_checkpoint_is_the_best_as_its_metric_has_it(metric, higher_is_better, monkeypatch):
    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", "")
    words = ["--metric_for_best_model", metric]
    assert parse_run(words).train.greater_is_better is higher_is_better
    given = [*words, "--greater_is_better", str(not higher_is_better)]
    assert parse_run(given).train.greater_is_better is not higher_is_better


def test_a_learning_rate_of_0_is_told(monkeypatch, capsys):
    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", "")
    parse_run(["--learning_rate", "0"])
    assert "--learning_rate 0: nothing is trained" in capsys.readouterr().out
