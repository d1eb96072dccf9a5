"""The `dwellmoe` command and the public names: light, quick, and helpful where something is missing."""

import ast
import re
import subprocess
import sys
import tomllib

import pytest

import dwellmoe
from dwellmoe.cli.main import COMMANDS, run
from dwellmoe.errors import UserError
from tests.conftest import ROOT

PLUGIN = """
import dwellmoe as dm
from dwellmoe.cache.policies.lru import Lru

dm.register_policy("my_lru")(Lru)
"""
IMPORTED_AS = {
    "PyYAML": "yaml",
    "rouge-score": "rouge_score",
    "latex2sympy2-extended": "latex2sympy2_extended",
}
NOT_IMPORTED = {"fastapi", "ninja", "setuptools", "tensorboard", "deepspeed", "accelerate", "jinja2", "tqdm"}
"""Needed by the libraries themselves, or for what a user asks of them."""


def test_help_lists_every_command(capsys):
    run([])
    written = capsys.readouterr().out
    assert all(f"  {name} " in written for name in COMMANDS)


def test_an_unknown_command_names_the_choices():
    with pytest.raises(UserError, match=r"unknown command 'simulat'.*simulate"):
        run(["simulat"])


def test_help_and_import_load_nothing_heavy():
    script = (
        "import sys, dwellmoe; from dwellmoe.cli.main import run; run(['--help']); "
        "heavy = {'torch', 'numpy', 'numba', 'transformers'} & set(sys.modules); "
        "sys.exit(str(heavy) if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_every_public_name_is_there():
    assert all(getattr(dwellmoe, name) is not None for name in dwellmoe.__all__)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        dwellmoe.nothing  # noqa: B018


@pytest.mark.slow
def test_a_plugin_counts_in_a_command(tmp_path):
    from tests.cache.traces import random_trace

    (tmp_path / "mine.py").write_text(PLUGIN)
    random_trace(0, steps=40).save(tmp_path / "t.safetensors")
    command = [sys.executable, "-m", "dwellmoe", "simulate", "replay", "--trace", "t.safetensors",
               "--capacity", "50%", "--policy"]  # fmt: skip
    lru, mine = (
        subprocess.run([*command, *words], cwd=tmp_path, capture_output=True, text=True)
        for words in (["lru"], ["my_lru", "--plugin", "mine.py"])
    )
    assert mine.returncode == 0, mine.stderr
    assert mine.stdout.replace("my_lru", "lru   ") == lru.stdout
    unknown = subprocess.run([*command, "my_lru"], cwd=tmp_path, capture_output=True, text=True)
    assert unknown.returncode == 2 and unknown.stderr.count("\n") == 1


@pytest.mark.parametrize("words", [["--plugin"], ["--plugin", "none.py"], ["--plugin=none.py"]])
def test_a_plugin_that_is_missing(words):
    with pytest.raises(UserError, match="--plugin"):
        run([*words, "simulate"])


def _requirements(extra: str, extras: dict[str, list[str]]) -> set[str]:
    """Names of the packages that an extra brings."""
    found = set()
    for requirement in extras[extra]:
        inner = re.fullmatch(r"dwellmoe\[(.*)\]", requirement)
        if inner:
            found |= {name for part in inner[1].split(",") for name in _requirements(part, extras)}
        else:
            found.add(re.split(r"[<>=!~\[ ]", requirement)[0])
    return found


def test_the_extra_all_declares_what_the_package_imports():
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    declared = {IMPORTED_AS.get(name, name.replace("-", "_")) for name in _requirements("all", extras)}
    imported = set()
    for path in (ROOT / "dwellmoe").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                imported |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                imported.add(node.module.split(".")[0])
    imported -= {"dwellmoe", *sys.stdlib_module_names}
    assert imported <= declared, f"not declared: {sorted(imported - declared)}"
    assert declared - imported <= NOT_IMPORTED, f"not used: {sorted(declared - imported - NOT_IMPORTED)}"


def test_requirements_pin_what_the_extras_allow():
    from packaging.requirements import Requirement

    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    lines = (ROOT / "requirements.txt").read_text().splitlines()
    pins = {name.lower(): version for name, version in (line.split("==") for line in lines if "==" in line)}
    wanted = [Requirement(text) for texts in extras.values() for text in texts if "dwellmoe[" not in text]
    for requirement in wanted:
        assert requirement.name.lower() in pins, f"{requirement.name} is not pinned in requirements.txt"
        assert requirement.specifier.contains(pins[requirement.name.lower()]), f"{requirement}: pin outside"
