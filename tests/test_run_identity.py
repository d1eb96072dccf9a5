"""Which options may change when a run is resumed."""

import dataclasses
import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import TrainingArguments

from dwellmoe.errors import UserError
from dwellmoe.locality.command_line import KINDS
from dwellmoe.locality.settings import AdapterSettings
from dwellmoe.run_identity import (
    DEEPSPEED,
    GROUPS_MAY_CHANGE,
    LAYERS,
    MAY_CHANGE,
    MAY_GROW,
    RANKS,
    RUN_FILE,
    check_same_layers,
    check_same_options,
    check_same_run,
    counting,
    defaults_of,
)
from dwellmoe.settings.model import ModelSettings

RUN = {
    "learning_rate": 0.001, "seed": 42, "lora_rank": 8, "max_steps": -1, "num_train_epochs": 2.0,
    "training rows": "mmlu-train-12", DEEPSPEED: None, RANKS: 2,
}  # fmt: skip


def saved(folder, record):
    (folder / RUN_FILE).write_text(json.dumps(record))
    return folder


@pytest.mark.parametrize(
    ("name", "value"), [("learning_rate", 0.01), ("seed", 1), ("training rows", "mmlu-train-9"), (RANKS, 1)]
)
def test_another_run_is_refused_with_both_values_unless_asked_for(tmp_path, capsys, name, value):
    folder = saved(tmp_path, RUN)
    assert check_same_run(folder, RUN, anyway=False)
    with pytest.raises(UserError, match=f"{name} was {RUN[name]}, is {value}"):
        check_same_run(folder, RUN | {name: value}, anyway=False)
    assert not check_same_run(folder, RUN | {name: value}, anyway=True)
    assert f"{name} was {RUN[name]}, is {value}" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("before", "changed"),
    [
        ({}, {"lora_rank": 4}),
        ({}, {DEEPSPEED: "ZeRO stage 2"}),
        ({DEEPSPEED: "ZeRO stage 2"}, {DEEPSPEED: "ZeRO stage 3"}),
        ({DEEPSPEED: "ZeRO stage 2"}, {DEEPSPEED: "ZeRO stage 2", RANKS: 1}),
    ],
)
def test_what_decides_a_checkpoints_tensors_is_refused_in_any_case(tmp_path, before, changed):
    folder = saved(tmp_path, RUN | before)
    with pytest.raises(UserError, match=f"give .*{list(changed)[-1]} as before"):
        check_same_run(folder, RUN | before | changed, anyway=True)


@given(st.floats(0, 1e6), st.floats(0, 1e6))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_a_run_may_be_made_longer_and_not_shorter(tmp_path, before, after):
    folder = saved(tmp_path, RUN | {"num_train_epochs": before})
    now = RUN | {"num_train_epochs": after}
    if after >= before:
        assert check_same_run(folder, now, anyway=False)
    else:
        with pytest.raises(UserError, match="--num_train_epochs"):
            check_same_run(folder, now, anyway=False)


def test_a_checkpoint_without_a_record_is_taken_and_that_is_said(tmp_path, capsys):
    assert check_same_run(tmp_path, RUN, anyway=False)
    assert RUN_FILE in capsys.readouterr().err


def test_a_broken_record_is_refused(tmp_path):
    (tmp_path / RUN_FILE).write_text('{"seed": ')
    with pytest.raises(UserError, match=RUN_FILE):
        check_same_run(tmp_path, RUN, anyway=False)


def test_what_may_change_are_options_that_exist():
    names = {field.name for field in dataclasses.fields(TrainingArguments)}
    ours = {field.name for kind in KINDS for field in dataclasses.fields(kind)}
    assert names | ours >= MAY_CHANGE
    assert all(any(name.startswith(group) for name in names) for group in GROUPS_MAY_CHANGE)
    counts = {*MAY_GROW, "learning_rate", "seed", "per_device_train_batch_size", "expert_format"}
    assert counts <= {*counting(dict.fromkeys(names | ours))}


def test_an_option_that_a_record_lacks_had_its_default(tmp_path):
    folder = saved(tmp_path, RUN)
    defaults = defaults_of(ModelSettings(), AdapterSettings())
    now = RUN | counting(dataclasses.asdict(ModelSettings()) | dataclasses.asdict(AdapterSettings()))
    assert {*now} > {*RUN}
    assert check_same_run(folder, now, anyway=False, defaults=defaults)
    check_same_options(folder, now, defaults)
    other = now | {"expert_format": "nf4"}
    with pytest.raises(UserError, match="--expert_format was none, is nf4"):
        check_same_options(folder, other, defaults)
    with pytest.raises(UserError, match="--expert_format was none, is nf4"):
        check_same_run(folder, other, anyway=False, defaults=defaults)


def test_another_choice_of_layers_is_refused(tmp_path):
    folder = saved(tmp_path, RUN | {LAYERS: [0, 2]})
    assert check_same_run(folder, RUN, anyway=False), "the layers are not known yet"
    check_same_layers(folder, [0, 2])
    with pytest.raises(UserError, match=r"trained MoE layers was \[0, 2\], is \[1\]"):
        check_same_layers(folder, [1])
    check_same_layers(saved(tmp_path, RUN), [1])  # a record from before layers were kept
