"""Options from a YAML file: `--config FILE` becomes the command line that the file's entries stand for."""

import json
from pathlib import Path
from typing import Any

from dwellmoe.errors import UserError, first_line, needs
from dwellmoe.options import split_off


def split_config(words: list[str]) -> tuple[list[str], list[str]]:
    """The words that every `--config FILE` or `--config=FILE` stands for, and the other words.

    Raises UserError for a file that cannot be read as options and values.
    """
    paths, left = split_off(words, "--config", "a path to a YAML file")
    return [word for path in paths for word in _words_of(Path(path))], left


def _words_of(path: Path) -> list[str]:
    table = _read(path)
    if not isinstance(table, dict):
        raise UserError(f"--config {path}: expected options and values, found {type(table).__name__}")
    return [word for name, value in table.items() for word in _option(path, name, value)]


def _read(path: Path) -> Any:
    with needs("train"):
        import yaml
    try:
        text = path.read_text(encoding="utf-8-sig")
        table = yaml.safe_load(text)
        _refuse_repeated(path, yaml.compose(text))
    except OSError as error:
        raise UserError(f"--config {path}: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise UserError(f"--config {path}: not UTF-8 text: byte {error.start}") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise UserError(f"--config {path}: not YAML: {first_line(error)}") from None
    return {} if table is None else table


def _refuse_repeated(path: Path, root: Any) -> None:
    """UserError for an option that stands in the file twice: YAML would take the last without a word."""
    pairs = root.value if root is not None and root.id == "mapping" else []
    names = [str(key.value) for key, _ in pairs]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise UserError(f"--config {path}: '{twice[0]}' is given twice")


def _option(path: Path, name: Any, value: Any) -> list[str]:
    """The words of one entry: none for null, which leaves the default, a comma list for a list."""
    if not isinstance(name, str):
        raise UserError(f"--config {path}: '{name}' is not the name of an option")
    option = f"--{name.removeprefix('--')}"
    if value is None:
        return []
    if isinstance(value, list):
        return [f"{option}={','.join(_text(path, name, entry) for entry in value)}"]
    if isinstance(value, dict):
        return [f"{option}={json.dumps(value, default=str)}"]
    return [f"{option}={_text(path, name, value)}"]


def _text(path: Path, name: str, value: Any) -> str:
    if isinstance(value, list | dict) or value is None:
        raise UserError(f"--config {path}: {name}: a list of texts and numbers was expected")
    # YAML reads `no` as false: as a text it is a choice of --eval_strategy, and still means false elsewhere.
    return "no" if value is False else str(value)
