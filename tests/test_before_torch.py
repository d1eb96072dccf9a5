"""Mistakes that are found before torch is imported, by the commands that take seconds to import it."""

import ast
import json
import re
import subprocess
import sys
from contextlib import nullcontext

import pytest

from dwellmoe.errors import UserError
from dwellmoe.families import find_moe_layers, target_names
from dwellmoe.locality.module_names import check_module_names
from tests.conftest import ROOT, quick_training
from tests.tiny_models import FAMILIES, tiny_model

CHECKED = """
import json, sys
from dwellmoe.errors import UserError
from dwellmoe.launch import check_command_line

def fault_of(parser, check, words):
    try:
        check_command_line(parser, check, words)
    except UserError as error:
        return str(error)

print(json.dumps([[fault_of(*case), "torch" in sys.modules] for case in json.load(sys.stdin)]))
"""
COMMANDS = ("main.py", "inference.py", "data_preparer.py")
TRAINING = [
    ("--lora_extra_modules nosuch", "--lora_extra_modules nosuch: only 'gate'"),
    ("--target_modules ,", "--target_modules names nothing"),
    ("--target_modules q_porj", "--target_modules 'q_porj': did you mean 'q_proj'"),
    ("--moe_module_name mpl", "--moe_module_name 'mpl': did you mean 'mlp'"),
    ("--daft_threshold some", "--daft_threshold some"),
    ("--daft_threshold q50 --ecr_profile none.csv", "--ecr_profile none.csv"),
    ("--resume_from_checkpoint none", "--resume_from_checkpoint none: no complete checkpoint"),
    ("--lora_save_path FILE/out", "--lora_save_path .*FILE/out: Not a directory"),
    ("--lora_save_path FINISHED", "FINISHED' holds checkpoint-8"),
    ("--lora_save_path FINISHED --resume_from_checkpoint auto --max_steps 8", "--max_steps 8"),
    (
        "--lora_save_path FINISHED --resume_from_checkpoint auto --seed 1",
        "another run: --lora_rank was 4, is 2; .*--seed was 42, is 1",
    ),
    ("--model_name none/none/none", "no model folder at 'none/none/none'"),
    ("--model_name EMPTY", "EMPTY': config.json is missing"),
    ("--dataset_name none", "unknown data set 'none'"),
    ("--dataset_name EMPTY/task.toml", "no task file at .*EMPTY/task.toml"),
    ("--dataset_name humaneval", "humaneval is a benchmark"),
    ("--dataset_name BROKEN/task.toml", "a.jsonl:2: broken JSON"),
    ("--consecutive_expert_loss_type none", "unknown locality objective 'none'"),
    ("--train_rerouting nosuch", "unknown routing strategy 'nosuch'"),
    ("--report_to tensorboard,wnadb", "unknown --report_to 'wnadb': did you mean 'wandb'"),
    ("--experts_implementation nosuch", "unknown --experts_implementation 'nosuch'"),
    ("--train_rerouting lru --train_rerouting_cache lru@0", "capacity '0': must be above 0"),
    ("--target_hit_rate none@25%=0.5", "unknown .*policy 'none'"),
    ("--quality_budget 0.1 --quality_reference EMPTY", "--quality_reference .*EMPTY"),
    ("--deepspeed none.json", "--deepspeed none.json: No such file"),
    ("--deepspeed FILE", "--deepspeed .*FILE: not JSON"),
]
EVALUATION = [
    ("--input=", "--input: the prompt is empty"),
    ("--input a\udc80", "--input is not UTF-8: byte 0x80 at offset 1"),
    ("--input a --json EMPTY", "EMPTY': cannot be written: not the name of a file"),
    ("--input a --json FILE/x.json", "--json .*FILE/x.json: '.*FILE' is not a folder"),
    ("--input a --expert_budget nan", "--expert_budget nan"),
    ("--input a --expert_budget 0%", "--expert_budget 0%: capacity '0%': must be above 0"),
    ("--input a --expert_budget inf", "--expert_budget inf"),
    ("--input a --routing_strategy lru --expert_budget 5_bananas", "--expert_budget 5_bananas"),
    ("--input a --expert_budget 50% --prefetch_predictor none", "unknown prefetch predictor 'none'"),
    ("--results_dir FILE/x", "results folder '.*FILE/x': Not a directory"),
    ("--device_profile none.toml", "--device_profile none.toml"),
    ("--lora_save_path none --use_lora True", "no adapter folder at 'none'"),
    ("--control_path EMPTY", "no adapter in '.*EMPTY': adapter_config.json is missing"),
    ("--control_path ADAPTER", "ADAPTER/adapter_model.safetensors: not a .safetensors file"),
    ("--model_name none/none/none", "no model folder"),
    ("--policies none", "unknown .*policy 'none'"),
    ("--dataset_name BROKEN/task.toml --split train", "a.jsonl:2: broken JSON"),
]
DATA = [
    ("show none", "unknown data set 'none'"),
    ("fetch boolq none", "unknown data set 'none'"),
    ("show EMPTY/task.toml", "no task file"),
    ("show BROKEN/task.toml", "a.jsonl:2: broken JSON"),
    ("show boolq --tokenizer none/none/none", "no tokenizer at 'none/none/none'"),
    ("show humaneval --split train", "humaneval is a benchmark"),
]


@pytest.fixture(scope="module")
def places(tmp_path_factory, sentences):
    """Word of a command line -> what it stands for."""
    folder = tmp_path_factory.mktemp("places")
    names = ("FILE", "EMPTY", "BROKEN", "ADAPTER", "FINISHED")
    for name in names[1:]:
        (folder / name).mkdir()
    (folder / "FILE").write_text("no folder")
    for file in sentences.parent.iterdir():
        (folder / "BROKEN" / file.name).write_text(file.read_text())
    lines = (folder / "BROKEN" / "a.jsonl").read_text().splitlines()
    (folder / "BROKEN" / "a.jsonl").write_text("\n".join([lines[0], '{"question":', *lines[1:]]))
    (folder / "ADAPTER" / "adapter_config.json").write_text("{}")
    (folder / "ADAPTER" / "adapter_model.safetensors").write_text("none")
    checkpoint = folder / "FINISHED" / "checkpoint-8"
    checkpoint.mkdir()
    (checkpoint / "trainer_state.json").write_text('{"global_step": 8}')
    (checkpoint / "run.json").write_text('{"lora_rank": 4, "seed": 42}')
    (checkpoint / "checksums.json").write_text("{}")
    return {name: str(folder / name) for name in names}


def begun_with(command: str) -> list[str]:
    """What a command gives to `begin`: its first statement, so that nothing slow is imported before."""
    first, *_ = [node for node in ast.parse((ROOT / command).read_text()).body if isinstance(node, ast.If)]
    imported = [node.module for node in ast.walk(first) if isinstance(node, ast.ImportFrom)]
    assert imported == ["dwellmoe.interrupt", "dwellmoe.launch"]
    (call,) = [node for node in ast.walk(first) if isinstance(node, ast.Call) and len(node.args) == 2]
    return [ast.literal_eval(argument) for argument in call.args]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("command", "cases"), [*zip(COMMANDS, (TRAINING, EVALUATION, DATA), strict=True)], ids=COMMANDS
)
def test_mistakes_are_found_without_torch(command, cases, tmp_path, places, tiny_checkpoint, sentences):
    model = f"--model_name {tiny_checkpoint} --dataset_name {sentences} --use_lora False"
    before = {
        "main.py": quick_training(tiny_checkpoint, sentences),
        "inference.py": [*model.split(), "--results_dir", str(tmp_path / "results")],
        "data_preparer.py": [],
    }[command]
    names = begun_with(command)
    words = [[*before, *(_placed(word, places) for word in text.split())] for text, _ in cases]
    given = json.dumps([[*names, line] for line in words])
    done = subprocess.run(
        [sys.executable, "-c", CHECKED], cwd=tmp_path, input=given, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    for (text, fault), (found, has_torch) in zip(cases, json.loads(done.stdout), strict=True):
        assert found is not None, f"{text}: not refused"
        assert re.search(fault, found) and "\n" not in found, f"{text}: {found}"
        assert not has_torch, text


def test_a_sound_command_line_passes(tmp_path, tiny_checkpoint, sentences):
    """Also without torch, so that what is refused is refused for its fault."""
    model = f"--model_name {tiny_checkpoint} --dataset_name {sentences} --use_lora False"
    given = [
        [*begun_with("main.py"), quick_training(tiny_checkpoint, sentences)],
        [*begun_with("inference.py"), [*model.split(), "--results_dir", "results"]],
        [*begun_with("inference.py"), [*model.split(), "--input", "a"]],
        [*begun_with("data_preparer.py"), ["show", str(sentences)]],
    ]
    done = subprocess.run(
        [sys.executable, "-c", CHECKED], cwd=tmp_path, input=json.dumps(given), capture_output=True, text=True
    )
    assert json.loads(done.stdout) == [[None, False]] * len(given), done.stderr


@pytest.mark.parametrize("family", FAMILIES)
def test_no_module_of_a_model_is_taken_for_a_slip(family):
    """By transformers' source alone, whatever a checkpoint calls its tensors."""
    model = tiny_model(family)
    config = model.config.to_dict()
    check_module_names(target_names(model, find_moe_layers(model)), config, ())
    is_known = family != "deepseek"  # whose code is not transformers'
    with pytest.raises(UserError, match="--target_modules 'nosuch_proj'") if is_known else nullcontext():
        check_module_names(["nosuch_proj"], config, ())


def test_only_what_the_interpreter_holds_is_imported_before_an_interrupt_is_one_line():
    code = "import sys; before = {*sys.modules}; import dwellmoe.interrupt; print({*sys.modules} - before)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert ast.literal_eval(done.stdout) == {"dwellmoe", "dwellmoe.interrupt"}


def _placed(word: str, places: dict[str, str]) -> str:
    for name, place in places.items():
        word = word.replace(name, place)
    return word
