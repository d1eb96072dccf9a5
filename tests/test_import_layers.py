"""The one structural rule: imports point downwards, and nothing in the package imports a file of the root."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "dwellmoe"
LAYERS = {
    **dict.fromkeys(
        (
            *("errors", "files", "interrupt", "lazy", "registry", "options", "log", "argument_parser"),
            *("config_file", "provenance"),
        ),
        0,
    ),
    **dict.fromkeys(
        (
            "cache",
            "families",
            "data",
            "settings",
            "settings_parser",
            "launch",
            "folder_lock",
            "run_identity",
            "publishing",
            "web",
        ),
        1,
    ),
    "routing": 2,
    "experts": 2,
    **dict.fromkeys(("locality", "eviction_training", "offload", "checkpoints", "adapter_folder"), 3),
    **dict.fromkeys(("loading", "base_model", "merged_checkpoint", "model_folder"), 4),
    **dict.fromkeys(("evaluation", "plots", "serving", "training_checks", "export", "harness"), 5),
    "cli": 6,
    **dict.fromkeys(("__init__", "__main__"), 7),
}
"""Module or folder of the package -> its layer. A file imports its own room and lower layers."""
SAME_LAYER = {
    ("errors", "interrupt"), ("log", "errors"), ("files", "errors"), ("registry", "errors"),
    ("options", "errors"), ("config_file", "errors"), ("argument_parser", "errors"),
    ("argument_parser", "options"), ("argument_parser", "log"), ("config_file", "options"),
    ("registry", "options"),
    ("data", "families"), ("evaluation", "plots"), ("serving", "evaluation"), ("harness", "evaluation"),
    ("__main__", "__init__"),
}  # fmt: skip
"""Imports inside a layer that the design allows."""
ROOT_FILES = ("main", "inference", "config", "trainer", "model_loader", "data_preparer")
SCRIPTS = ("benchmarks", "docs", "runs", "models")
"""Folders of scripts: they import the package, files of the root and one another; no other file does so."""
TORCH_FREE = (
    "cache",
    "plots",
    "errors",
    "files",
    "registry",
    "options",
    "log",
    "cli",
    "settings",
    "__init__",
)


def _room(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def _imports(path: Path, inside_functions: bool = True):
    """Dotted names of the modules that a file imports."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    nodes = ast.walk(tree) if inside_functions else tree.body
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module == "dwellmoe":
            yield from (f"dwellmoe.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            yield node.module


def _allowed(room: str, other: str) -> bool:
    return room == other or LAYERS[other] < LAYERS[room] or (room, other) in SAME_LAYER


@pytest.mark.parametrize(
    "path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: str(path.relative_to(PACKAGE))
)
def test_the_package_imports_downwards_only(path: Path):
    names = set(_imports(path))
    rooms = {name.split(".")[1] for name in names if name.startswith("dwellmoe.")}
    wrong = sorted(other for other in rooms if not _allowed(_room(path), other))
    assert not wrong, f"{path.relative_to(ROOT)} imports {wrong}, which lie above or beside it"
    outside = {name.split(".")[0] for name in names} & {*ROOT_FILES, *SCRIPTS, "tests"}
    assert not outside, f"{path.relative_to(ROOT)} imports {sorted(outside)} from outside the package"


@pytest.mark.parametrize(
    "path",
    [ROOT / f"{name}.py" for name in ROOT_FILES]
    + sorted(path for folder in SCRIPTS for path in (ROOT / folder).rglob("*.py")),
    ids=lambda path: str(path.relative_to(ROOT)),
)
def test_only_scripts_import_scripts(path: Path):
    tops = {name.split(".")[0] for name in _imports(path)}
    wrong = tops & ({*SCRIPTS} if path.parent == ROOT else {"tests"})
    assert not wrong, f"{path.relative_to(ROOT)} imports {sorted(wrong)}"


@pytest.mark.parametrize(
    "path",
    [path for path in sorted(PACKAGE.rglob("*.py")) if _room(path) in TORCH_FREE],
    ids=lambda path: str(path.relative_to(PACKAGE)),
)
def test_light_modules_import_no_torch(path: Path):
    heavy = {"torch", "transformers", "peft", "datasets", "accelerate"}
    found = heavy & {name.split(".")[0] for name in _imports(path, inside_functions=_room(path) != "cli")}
    assert not found, f"{path.relative_to(ROOT)} imports {sorted(found)}"


def test_every_room_has_a_layer():
    rooms = {_room(path) for path in PACKAGE.rglob("*.py")}
    assert rooms <= set(LAYERS)


def test_the_root_holds_the_six_files_and_no_other_python():
    assert {path.stem for path in ROOT.glob("*.py")} == set(ROOT_FILES)


def test_the_data_folder_is_no_package():
    assert not (ROOT / "datasets" / "__init__.py").exists(), "it would hide the datasets library"
