"""Names that transformers looks options up by, read from its source: importing it takes seconds."""

import ast
import functools
import importlib.util
from collections.abc import Iterable
from pathlib import Path

from dwellmoe.errors import needs, unknown_name

REPORTERS = ("integrations/integration_utils.py", "INTEGRATION_TO_CALLBACK")
EXPERTS_IMPLEMENTATIONS = ("integrations/moe.py", "_global_mapping")
"""File of transformers, and the dictionary in it that has the names as keys."""


def check_library_name(option: str, name: str, table: tuple[str, str], also: Iterable[str]) -> None:
    """Raises UserError for a name that neither the table nor `also` has."""
    names = names_of(*table)
    choices = sorted({*names, *also})
    if names and name not in choices:
        raise unknown_name(option, name, choices)


def library_source(name: str) -> ast.Module:
    """A file of transformers. Raises UserError where that is not installed."""
    with needs("train"):
        found = importlib.util.find_spec("transformers")
        if found is None or not found.submodule_search_locations:
            raise ModuleNotFoundError(name="transformers")
    return ast.parse((Path(found.submodule_search_locations[0]) / name).read_text(encoding="utf-8"))


@functools.cache
def names_of(file: str, variable: str) -> tuple[str, ...]:
    """The keys of a dictionary in a file of transformers; none where a version keeps them elsewhere."""
    try:
        nodes = list(ast.walk(library_source(file)))
    except OSError:
        return ()
    tables = {
        ast.unparse(target): node.value.keys
        for node in nodes
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Dict)
        for target in node.targets
    }
    return tuple(str(key.value) for key in tables.get(variable, ()) if isinstance(key, ast.Constant))
