"""The command line of evaluation: what it takes, what it warns of, and mistakes named in one line."""

import pytest

from dwellmoe.errors import UserError
from dwellmoe.evaluation.ranks import Ranks
from inference import evaluate, parse
from tests.evaluation.workspace import make_workspace, options


@pytest.fixture(scope="module")
def workspace(tmp_path_factory):
    return make_workspace(tmp_path_factory.mktemp("workspace"))


def test_options_without_effect_get_one_line(workspace, capsys):
    parse([*options(workspace), "--learning_rate", "0.1", "--daft_threshold", "0.7", "--batch_size", "4"])
    lines = capsys.readouterr().err.strip().splitlines()
    expected = "warning: inference.py does not use --batch_size, --daft_threshold, --learning_rate"
    assert [line for line in lines if line.startswith("warning")] == [expected]


def test_without_lora_only_the_base_is_reported(workspace):
    given = options(workspace)
    index = given.index("--control_path")
    assert parse([*given[:index], *given[index + 2 :], "--use_lora", "False"]).adapters == {}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"lora_save_path": "{}/tuned/checkpoint-99"}, "choose from .*checkpoint-10"),
        (
            {"device_profile": "abacus.toml"},
            "--device_profile abacus.toml: .*choose from configs/devices/",
        ),
        ({"policies": "lru,nearest"}, "unknown policy 'nearest': choose from"),
        ({"split": "exam"}, "--split exam: choose from "),
        ({"dataset_name": "unheard_of"}, "unknown data set 'unheard_of'"),
        ({"eval_batch_size": "0"}, "must be at least 1"),
        ({"results_dir": "{}/model/config.json/x/y"}, "results folder .*config.json/x/y"),
        ({"results_dir": "{}/model/config.json"}, "results folder"),
        ({"results_dir": "{}/" + "x" * 300}, "results folder"),
        ({"json": "{}/model/config.json/report.json"}, "--json .*report.json"),
        ({"json": "{}/model"}, "model': cannot be written"),
    ],
)
def test_mistakes_are_named(workspace, change, message):
    change = {name: value.format(workspace) for name, value in change.items()}
    with pytest.raises(UserError, match=message):
        evaluate(parse(options(workspace, **change)), Ranks())


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("w1 \udcff w2", "byte 0xff at offset 3"),
        ("é\udce9", "byte 0xe9 at offset 2"),
        (" \n", "empty"),
    ],
)
def test_a_prompt_that_cannot_be_asked_is_named(workspace, text, message):
    with pytest.raises(UserError, match=f"--input.*{message}"):
        parse(["--model_name", str(workspace / "model"), "--use_lora", "False", "--input", text])
