"""docs/architecture.md names files, functions and folders that exist."""

import ast
import re

import pytest

from tests.docs.pages import ROOT

PAGE = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
REFERENCES = sorted(set(re.findall(r"`([\w/.-]+\.py):([\w.]+)`", PAGE)))
FOLDERS = sorted(set(re.findall(r"^\| `([\w/]+/)` \|", PAGE, re.MULTILINE)))
FEWEST_STEPS = 12


def _defined(tree: ast.AST, prefix: str = "") -> set[str]:
    """Names of the functions and classes of a module, methods as `Class.method`."""
    found = set()
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            found |= {prefix + node.name} | _defined(node, f"{prefix}{node.name}.")
    return found


@pytest.mark.parametrize(("path", "name"), REFERENCES)
def test_a_step_names_a_function_that_exists(path: str, name: str):
    source = (ROOT / path).read_text(encoding="utf-8")
    assert name in _defined(ast.parse(source))


@pytest.mark.parametrize("folder", FOLDERS)
def test_a_folder_of_the_map_exists(folder: str):
    assert (ROOT / folder).is_dir()


def test_every_folder_of_the_package_is_on_the_map():
    rooms = {
        f"dwellmoe/{path.name}/" for path in (ROOT / "dwellmoe").iterdir() if (path / "__init__.py").is_file()
    }
    assert rooms <= {*FOLDERS}


def test_both_walks_are_written_down():
    assert len(REFERENCES) >= FEWEST_STEPS
