"""The wheel, installed into a fresh environment and used outside of the checkout."""

import importlib.metadata
import os
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from tests.cache.traces import random_trace
from tests.conftest import ROOT

pytestmark = pytest.mark.slow

LIGHT = """
import sys
import dwellmoe as dm
assert not {"numpy", "torch"} & set(sys.modules), "import dwellmoe is not light"
trace = dm.RoutingTrace.load(sys.argv[1])
row = dm.replay(trace, policy="lru", capacity="50%")
decoded = int((trace.phase == 1).sum())
assert 0 < row.hit_rate < 1 and row.hits + row.misses == decoded * trace.layers * trace.top_k
cache = dm.ExpertCache("lru", layers=24, experts=64, capacity=16)
first, second = (cache.request(layer=0, experts=[3, 7]) for _ in range(2))
assert sorted(first.load) == [3, 7] and not second.load

from dwellmoe.cache.policies.lru import Lru

dm.register_policy("mine")(Lru)
assert dm.replay(trace, policy="mine", capacity="50%").hits == row.hits
assert "torch" not in sys.modules, "the light half loads torch"
print("ok", dm.__file__)
"""
NEEDS_TRAIN = """
import dwellmoe
try:
    dwellmoe.LocalityLoss
except ImportError as error:
    print(error)
"""
WHOLE = """
import sys
import torch
import dwellmoe as dm
from transformers import AutoModelForCausalLM, AutoTokenizer
path = sys.argv[2]
model, tokenizer = AutoModelForCausalLM.from_pretrained(path), AutoTokenizer.from_pretrained(path)
trace = dm.record(model, tokenizer, ["w1 w2 w3 w4", "w5 w6 w7"])
assert 0 < dm.replay(trace, policy="lru", capacity="50%").hit_rate < 1
batch = dict(tokenizer(["w1 w2 w3 w4"], return_tensors="pt"))
batch["labels"] = batch["input_ids"].clone()
with dm.LocalityLoss(model, "cache_miss:budget=50%", weight=0.5) as locality:
    loss = model(**batch).loss + locality(batch)
loss.backward()
dm.LocalityCallback("js", target_ecr=0.4)
streamed = dm.offload(path, budget="75%", policy="lru")
answers = [each.generate(batch["input_ids"], max_new_tokens=6, do_sample=False) for each in (model, streamed)]
assert torch.equal(*answers)
print("ok", dm.__file__)
"""


def _run(python: Path, folder: Path, *words: object) -> subprocess.CompletedProcess:
    variables = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    return subprocess.run(
        [str(python), *map(str, words)], cwd=folder, env=variables, capture_output=True, text=True
    )


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    pip = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "-q",
        "--no-deps",
        "--no-build-isolation",
        "-w",
        folder,
        ROOT,
    ]
    subprocess.run([str(word) for word in pip], check=True, cwd=folder)
    (found,) = folder.glob("*.whl")
    return found


def _installed(folder: Path, wheel: Path, extra: str) -> Path:
    """The Python of a new virtual environment into which pip installed the wheel with one extra."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder / "venv")], check=True)
    python = folder / "venv" / "bin" / "python"
    pip = ["-m", "pip", "--python", python, "--disable-pip-version-check", "-q"]
    options = ["--progress-bar", "off", "--no-compile", "-c", ROOT / "requirements.txt"]
    done = _run(Path(sys.executable), folder, *pip, "install", *options, f"{wheel}[{extra}]")
    assert done.returncode == 0, done.stderr
    return python


def _linked(folder: Path, wheel: Path, extra: str) -> Path:
    """The Python of a new virtual environment that holds the wheel and, of all packages that are installed
    here, those alone that the extra needs by its metadata: what is not declared cannot be imported.
    """
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder / "venv")], check=True)
    (site,) = (folder / "venv" / "lib").glob("python*/site-packages")
    zipfile.ZipFile(wheel).extractall(site)
    for distribution in _needed(f"dwellmoe[{extra}]", site):
        for top in {file.parts[0] for file in distribution.files or ()} - {"..", "__pycache__"}:
            if not (site / top).exists():
                (site / top).symlink_to(Path(str(distribution.locate_file(top))))
    return folder / "venv" / "bin" / "python"


def _needed(requirement: str, site: Path) -> Iterator[importlib.metadata.Distribution]:
    """The distributions that a requirement brings, each as it is installed here, but our own as in `site`."""
    (own,) = importlib.metadata.distributions(path=[str(site)])
    waiting, seen = [Requirement(requirement)], set()
    while waiting:
        needed = waiting.pop()
        distribution = own if needed.name == "dwellmoe" else importlib.metadata.distribution(needed.name)
        assert needed.specifier.contains(distribution.version, prereleases=True), f"{needed} is not installed"
        for extra in {"", *needed.extras} - {found for name, found in seen if name == needed.name}:
            seen.add((needed.name, extra))
            brought = map(Requirement, distribution.requires or ())
            waiting += [one for one in brought if not one.marker or one.marker.evaluate({"extra": extra})]
        yield distribution


@pytest.fixture(scope="module")
def trace_path(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("trace") / "t.safetensors"
    random_trace(0, steps=60).save(path)
    return path


@pytest.fixture(scope="module")
def light(tmp_path_factory, wheel) -> Path:
    return _installed(tmp_path_factory.mktemp("sim"), wheel, "sim")


def test_the_extra_sim_runs_the_light_half(light, trace_path, tmp_path):
    done = _run(light, tmp_path, "-c", LIGHT, trace_path)
    assert done.returncode == 0 and done.stdout.startswith("ok"), done.stderr
    assert str(ROOT) not in done.stdout


def test_the_extra_sim_runs_the_simulator(light, trace_path, tmp_path):
    command = light.with_name("dwellmoe")
    done = _run(command, tmp_path, "simulate", "replay", "--trace", trace_path, "--policy", "lru",
                "--capacity", "50%")  # fmt: skip
    assert done.returncode == 0 and "hit rate" in done.stdout, done.stderr
    done = _run(command, tmp_path, "simulate", "curve", "--trace", trace_path, "--policies", "lru",
                "--plot", tmp_path / "curve.png")  # fmt: skip
    assert done.returncode == 0 and (tmp_path / "curve.png").stat().st_size > 1000, done.stderr


def test_a_missing_extra_is_named(light, trace_path, tmp_path):
    assert 'pip install "dwellmoe[train]"' in _run(light, tmp_path, "-c", NEEDS_TRAIN).stdout
    done = _run(light.with_name("dwellmoe"), tmp_path, "pack", "model", "out")
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and "dwellmoe[" in done.stderr


def test_what_an_extra_does_not_need_cannot_be_imported(wheel, tmp_path):
    """Or the test below could not fail."""
    done = _run(_linked(tmp_path, wheel, "sim"), tmp_path, "-c", "import dwellmoe, llvmlite, numba, torch")
    assert "No module named 'torch'" in done.stderr


def test_the_extra_all_runs_the_whole_api(wheel, trace_path, tiny_checkpoint, tmp_path_factory):
    folder = tmp_path_factory.mktemp("all")
    python = _linked(folder, wheel, "all")
    done = _run(python, folder, "-c", WHOLE, trace_path, tiny_checkpoint)
    assert done.returncode == 0 and done.stdout.startswith("ok"), done.stderr
    assert str(ROOT) not in done.stdout
    done = _run(python, folder, "-c", "from dwellmoe.data.task import task_names; print(*task_names())")
    assert "boolq" in done.stdout, done.stderr
