"""Holds the house's one structural rule: imports point downwards."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
LAYERS = {
    "errors": 0,
    "specs": 0,
    "simulate_options": 0,
    "command_line": 0,
    "config": 0,
    "launch": 0,
    "expert_cache": 0,
    "models": 0,
    "routing": 1,
    "locality": 1,
    "offload": 2,
    "checkpoints": 3,
    "trainer": 3,
    "training_run": 3,
    "training_callbacks": 3,
    "model_loader": 3,
    "data_preparer": 3,
    "data_pipeline": 3,
    "evaluation": 3,
    "eviction_training": 3,
    "plots": 3,
    "main": 4,
    "inference": 4,
    "simulate": 4,
}
SAME_LAYER = {  # arrows inside a layer that the design allows, beside those inside a room
    0: {
        ("command_line", "errors"),
        ("config", "command_line"),
        ("config", "errors"),
        ("simulate_options", "errors"),
        ("expert_cache", "errors"),
        ("expert_cache", "specs"),
        ("models", "errors"),
        ("specs", "errors"),
    },
    1: {("locality", "routing")},
    2: set(),
    3: None,
    4: set(),
}
TORCH_FREE = ("expert_cache", "plots", "simulate", "errors", "specs")


def _files():
    places = [ROOT / f"{name}.py" for name in LAYERS] + [ROOT / name for name in LAYERS]
    for place in places:
        yield from [place] if place.is_file() else sorted(place.rglob("*.py"))


def _room(path: Path) -> str:
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


def _imports(path: Path):
    """Names of the top-level modules a file imports, anywhere in it."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            yield node.module.split(".")[0]


def _allowed(room: str, other: str) -> bool:
    if room == other or other not in LAYERS:
        return True
    here, there = LAYERS[room], LAYERS[other]
    if here == there:
        allowed = SAME_LAYER[here]
        return allowed is None or (room, other) in allowed
    return there < here


@pytest.mark.parametrize("path", list(_files()), ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_point_downwards(path: Path):
    if "tiny-" in str(path):
        pytest.skip("a script, not a module")
    wrong = [other for other in _imports(path) if not _allowed(_room(path), other)]
    assert not wrong, f"{path.relative_to(ROOT)} imports {wrong}, which lie above or beside it"


@pytest.mark.parametrize("path", [p for p in _files() if _room(p) in TORCH_FREE], ids=lambda p: p.stem)
def test_torch_free_rooms_import_no_torch(path: Path):
    heavy = {"torch", "transformers", "peft", "datasets", "accelerate"} & set(_imports(path))
    assert not heavy, f"{path.relative_to(ROOT)} imports {heavy}"


def test_the_data_folder_is_no_package():
    assert not (ROOT / "datasets" / "__init__.py").exists(), "it would hide the datasets library"
