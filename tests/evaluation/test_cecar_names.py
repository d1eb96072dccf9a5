"""CECAR's command lines in our options; none of theirs is dropped without a warning."""

import pytest

from dwellmoe.errors import UserError
from dwellmoe.evaluation.cecar_names import translate


def test_its_evaluation_command():
    given = (
        "--simulation_model OLMoE_1B_7B_0125_Instruct --tasks humaneval --cache_policy ML_CECAR --mode none "
    )
    given += "--bonus_strategy cecar --topk_threshold 4 --cache_size 24 --limit 1 --limit_start 0"
    expected = (
        "--model_name allenai/OLMoE-1B-7B-0125-Instruct --dataset_name humaneval --decode_policy ml_cecar "
    )
    expected += "--expert_budget 24 --limit 1 --limit_start 0 --routing_strategy cecar:tau=4 --use_lora False"
    assert translate(given.split()) == expected.split()


def test_its_inference_command():
    given = "--model PATH --test-task gpqa --task-num 0 --cache-policy lifo --mode odp --n-token=9"
    given += " --use-chat-template"
    expected = "--model_name PATH --dataset_name gpqa --task_num 0 --decode_policy lifo --max_new_tokens 9 "
    expected += "--use_chat_template on --routing_strategy odp --use_lora False"
    assert translate(given.split()) == expected.split()
    own = translate(
        ["--model", "PATH", "--input", "my own prompt", "--bonus-strategy", "mocce", "--top_J", "1"]
    )
    assert own[2:6] == ["--input", "my own prompt", "--routing_strategy", "mocce:always=1"]


def test_our_own_command_lines_are_left_alone():
    ours = ["--model_name", "PATH", "--bf16", "--limit", "3", "--config=a.yaml"]
    assert translate(ours) == ours
    assert "--use_lora" not in translate(["--model", "PATH", "--peft_model", "A"])


def test_an_option_without_counterpart_is_named(capsys):
    assert "--expert_path" not in translate(["--model", "P", "--expert_path", "E"])
    assert "--expert_path has no effect here" in capsys.readouterr().err
    translate(["--mode", "des", "--bonus_strategy", "cecar"])
    assert "--bonus_strategy cecar has no effect" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("--mode fast", "unknown mode 'fast': choose from des, none, odp"),
        ("--bonus_strategy big", "unknown bonus strategy 'big'"),
        ("--bonus_strategy cecar --lambda_cache 0.1", "--lambda_cache: strategy 'cecar'"),
    ],
)
def test_values_it_has_not_are_refused(given, message):
    with pytest.raises(UserError, match=message):
        translate(given.split())
