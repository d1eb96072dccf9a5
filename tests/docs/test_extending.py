"""The recipes of docs/extending.md, run as they stand from files outside the repository."""

import json
import re
from pathlib import Path

import pytest

from tests.cache.traces import random_trace
from tests.conftest import quick_training
from tests.docs.pages import ROOT

pytestmark = pytest.mark.slow

PAGE = (ROOT / "docs" / "extending.md").read_text(encoding="utf-8")
LONGEST_RECIPE = 15


def _recipes() -> dict[str, str]:
    """Title of a section -> its Python."""
    sections = re.split(r"^## ", PAGE, flags=re.MULTILINE)[1:]
    found = {
        section.partition("\n")[0]: re.search(r"```python\n(.*?)```", section, re.DOTALL)
        for section in sections
    }
    return {title: match[1] for title, match in found.items() if match}


RECIPES = _recipes()


@pytest.fixture
def recipe(tmp_path):
    """Writes the recipe of a section into the test's folder, where commands run."""

    def write(title: str) -> str:
        name = f"my_{title.split()[-1].lower()}.py"
        (tmp_path / name).write_text(RECIPES[title], encoding="utf-8")
        return name

    return write


@pytest.fixture
def trace(tmp_path) -> Path:
    random_trace(experts=16, steps=200).save(tmp_path / "trace.safetensors")
    return tmp_path / "trace.safetensors"


def _succeeded(process) -> str:
    assert process.returncode == 0, process.stderr
    return process.stdout


@pytest.mark.parametrize("title", RECIPES)
def test_a_recipe_is_short(title: str):
    lines = [
        line for line in RECIPES[title].splitlines() if line.strip() and not line.strip().startswith("#")
    ]
    assert len(lines) <= LONGEST_RECIPE


def test_every_kind_of_plug_in_has_a_recipe():
    from dwellmoe.registry import REGISTRIES

    used = set(re.findall(r"dm\.register_(\w+)\(", PAGE))
    assert used == {*REGISTRIES}


def test_eviction_policy(run_command, recipe, trace):
    options = ("--capacity", "8", "--json", "-", "--plugin", recipe("Eviction policy"))
    spec = "favourites:bonus=2"
    process = run_command("dwellmoe", "simulate", "replay", "--trace", trace, "--policy", spec, *options)
    assert json.loads(_succeeded(process))["cache"][0]["policy"] == spec


def test_trace_format(run_command, recipe, trace, tmp_path):
    options = ("--plugin", recipe("Trace format"))
    there = run_command("dwellmoe", "simulate", "convert", "--trace", trace, "--out", "g.npz", *options)
    _succeeded(there)
    back = ("dwellmoe", "simulate", "convert", "--trace", "g.npz", "--out", "back.safetensors", *options)
    _succeeded(run_command(*back))
    from dwellmoe.cache.trace import RoutingTrace

    before, after = (RoutingTrace.load(path) for path in (trace, tmp_path / "back.safetensors"))
    assert (before.experts == after.experts).all()


def test_figure(run_command, recipe, trace, tmp_path):
    _succeeded(run_command("python", recipe("Figure")))
    assert (tmp_path / "my_figure.png").read_bytes().startswith(b"\x89PNG")


def test_data_set(run_command, tmp_path):
    folder = tmp_path / "my_data"
    folder.mkdir()
    (folder / "task.toml").write_text(re.search(r"```toml\n(.*?)```", PAGE, re.DOTALL)[1], encoding="utf-8")
    for split in ("train", "validation", "test"):
        row = re.search(r"```json\n(.*?)```", PAGE, re.DOTALL)[1]
        (folder / f"{split}.jsonl").write_text(row.replace("router", f"{split} router"), encoding="utf-8")
    shown = _succeeded(run_command("python", ROOT / "data_preparer.py", "show", "my_data/task.toml"))
    assert "train router" in shown


def test_locality_objective(run_command, recipe, tiny_checkpoint, sentences, tmp_path):
    options = ("--consecutive_expert_loss_type", "hellinger:temperature=2", "--max_steps", "2")
    command = ("python", ROOT / "main.py", *quick_training(tiny_checkpoint, sentences), *options)
    _succeeded(run_command(*command, "--plugin", recipe("Locality objective")))
    log = json.loads((tmp_path / "out" / "training_summary.json").read_text())["log_history"]
    assert any(entry.get("locality_loss", 0) > 0 for entry in log)


def test_routing_strategy_and_predictor(run_command, recipe, tiny_checkpoint):
    plugins = ("--plugin", recipe("Routing strategy"), "--plugin", recipe("Predictor"))
    asked = ("--input", "w1 w2 w3", "--max_new_tokens", "6", "--policies", "lru", "--json", "-")
    engine = ("--expert_budget", "50%", "--prefetch_predictor", "shares:memory=0.9", "--io", "buffered")
    rerouting = ("--routing_strategy", "stay:bonus=5", "--reroute_live", "True")
    command = ("python", ROOT / "inference.py", "--model_name", tiny_checkpoint, "--use_lora", "False")
    found = json.loads(_succeeded(run_command(*command, *asked, *engine, *rerouting, *plugins)))
    assert found["rerouting"]["strategy"] == "stay:bonus=5"


def test_model_family(run_command, recipe, tiny_checkpoint, tmp_path):
    (tmp_path / "use.py").write_text(SWITCHY.format(checkpoint=tiny_checkpoint, file=recipe("Model family")))
    assert "3 layers of 8 experts" in _succeeded(run_command("python", "use.py"))


SWITCHY = """
import dwellmoe as dm
from dwellmoe.registry import load_plugin
from transformers import AutoModelForCausalLM, AutoTokenizer

load_plugin("{file}")
model = AutoModelForCausalLM.from_pretrained("{checkpoint}")
for layer in model.model.layers:  # an OLMoE whose router is called `switch`
    kind = type(layer.mlp)
    layer.mlp.__class__ = type("Block", (kind,), {{"gate": property(lambda block: block.switch)}})
    layer.mlp.switch = layer.mlp._modules.pop("gate")
model.config.model_type = "switchy"
trace = dm.record(model, AutoTokenizer.from_pretrained("{checkpoint}"), ["w1 w2 w3 w4"])
print(f"{{trace.layers}} layers of {{trace.num_experts}} experts")
"""
