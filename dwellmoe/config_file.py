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
    table, written = _read(path)
    if not isinstance(table, dict):
        raise UserError(f"--config {path}: expected options and values, found {type(table).__name__}")
    _refuse_repeated(path, [name for name, _ in written])
    nodes = dict(written)
    return [word for name, value in table.items() for word in _option(path, name, value, nodes.get(name))]


def _read(path: Path) -> tuple[Any, list[tuple[str, Any]]]:
    """What YAML makes of the file, and its entries as they are written: name and node of the value."""
    with needs("train"):
        import yaml
    try:
        text = path.read_text(encoding="utf-8-sig")
        table, root = yaml.safe_load(text), yaml.compose(text)
    except OSError as error:
        raise UserError(f"--config {path}: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise UserError(f"--config {path}: not UTF-8 text: byte {error.start}") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise UserError(f"--config {path}: not YAML: {first_line(error)}") from None
    written = root.value if isinstance(root, yaml.MappingNode) else []
    return {} if table is None else table, [(str(key.value), node) for key, node in written]


def _refuse_repeated(path: Path, names: list[str]) -> None:
    """UserError for an option that stands in the file twice, however it is spelt."""
    options = [name.removeprefix("--").replace("-", "_") for name in names]
    if twice := sorted({name for name in options if options.count(name) > 1}):
        raise UserError(f"--config {path}: '{twice[0]}' is given twice")


def _option(path: Path, name: Any, value: Any, node: Any) -> list[str]:
    """The words of one entry: none for null, which leaves the default, a comma list for a list."""
    if not isinstance(name, str) or not name:
        raise UserError(f"--config {path}: '{name}' is not the name of an option")
    option = f"--{name.removeprefix('--')}"
    if value is None:
        return []
    if isinstance(value, list):
        entries = zip(value, node.value if node else [None] * len(value), strict=True)
        return [f"{option}={','.join(_text(path, name, *entry) for entry in entries)}"]
    if isinstance(value, dict):
        return [f"{option}={json.dumps(value, default=str)}"]
    return [f"{option}={_text(path, name, value, node)}"]


def _text(path: Path, name: str, value: Any, node: Any) -> str:
    """A value as an option takes it: as it is written, where YAML would make `off` false and 1.10 1.1.

    `false` is the choice `no` of --eval_strategy, and still means false elsewhere.
    """
    if isinstance(value, list | dict) or value is None:
        raise UserError(f"--config {path}: {name}: a list of texts and numbers was expected")
    if value is False and (node is None or node.value.lower() == "false"):
        return "no"
    if node is None or (isinstance(value, int) and not isinstance(value, bool)):
        return str(value)  # 0x10 and 010 are numbers of YAML alone
    is_special = isinstance(value, float) and not node.value[-1:].isdigit()  # .inf, .nan
    return str(value) if is_special else node.value
