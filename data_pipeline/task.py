"""Knows what a task file (`datasets/<name>/task.toml`) may say; does not read any data."""

import tomllib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from errors import UserError, unknown_name

TASKS_FOLDER = Path(__file__).resolve().parent.parent / "datasets"
SPLITS = ("train", "validation", "test")
ANSWER_FORMS = ("true_false", "option_number", "option_letter", "choice_text", "rationale", "free_text")
METRICS = ("accuracy", "rouge", "perplexity")
SOURCE_KINDS = ("package", "hub", "file")


@dataclass(frozen=True)
class Source:
    """One place the records come from: a Python package, the hub, or files of the user's own."""

    kind: str
    files: dict[str, str]
    """Raw split name -> path inside the package, hub split name, or path beside the task file."""
    map: dict[str, Any] = field(default_factory=dict)
    """Field -> where the raw record holds it (see fields.py); empty: the raw record has the fields."""
    splits: dict[str, str] = field(default_factory=dict)
    """train / validation / test -> an expression over raw split names (see splits.py)."""
    package: str = ""
    sha256: str = ""
    hub_path: str = ""
    hub_config: str = ""
    revision: str = ""
    """The hub commit that is loaded: a data set must not change under a published number."""
    root: str = ""
    """Key of the raw line that holds the record, where a line wraps it."""
    unique_by: str = ""
    """Key by which repeated lines are one record."""
    below: dict[str, int] = field(default_factory=dict)
    """Lines whose value at the key is not below the bound are dropped."""
    article_start: str = ""
    """Lines of running text (key `text`) are joined to articles; a line that matches this pattern opens the
    next.
    """
    shuffle_seed: int | None = None
    """Records are shuffled before a share is cut off, where the source has them sorted by subject."""
    note: str = ""
    """Said to the user when this source is the one that serves."""


@dataclass(frozen=True)
class Task:
    """A data set as the rest of the house sees it: wording, fields, answer rule, metric and sources."""

    name: str
    folder: Path
    prompt: str
    answer: str
    form: str
    metric: str
    fields: tuple[str, ...]
    sources: tuple[Source, ...]
    summary: str = ""
    licence: str = ""
    homepage: str = ""
    mix: dict[str, float] = field(default_factory=dict)
    """Other tasks -> share of the mix; a mix has no sources of its own."""


def check_split(split: str) -> None:
    """Raises UserError for a split that is not one of the three."""
    if split not in SPLITS:
        raise unknown_name("split", split, SPLITS)


def task_names() -> list[str]:
    """Names of the data sets that come with the project: the folders that hold a task file."""
    return sorted(path.parent.name for path in TASKS_FOLDER.glob("*/task.toml"))


def load_task(name_or_path: str) -> Task:
    """The task of that name, or the one in a task file of the user's own. Raises UserError."""
    if name_or_path.endswith(".toml"):
        return _read_task_file(Path(name_or_path))
    if name_or_path not in task_names():
        raise unknown_name("data set", name_or_path, [*task_names(), "path/to/task.toml"])
    return _read_task_file(TASKS_FOLDER / name_or_path / "task.toml")


def _read_task_file(path: Path) -> Task:
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"no task file at '{path}'") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not a TOML file: {error}") from None
    return _task_from_table(table, path)


def _task_from_table(table: dict, path: Path) -> Task:
    known = {*Task.__dataclass_fields__, "source"} - {"folder", "sources"}
    _reject_unknown_keys(table, known, path)
    mix = table.get("mix", {})
    if not mix:
        _require_keys(table, ("prompt", "answer", "form", "metric", "fields", "source"), path)
        _require_choice(table["form"], "form", ANSWER_FORMS, path)
        _require_choice(table["metric"], "metric", METRICS, path)
    return Task(
        name=table.get("name", path.parent.name),
        folder=path.resolve().parent,
        prompt=table.get("prompt", ""),
        answer=table.get("answer", ""),
        form=table.get("form", "free_text"),
        metric=table.get("metric", "perplexity"),
        fields=tuple(table.get("fields", ())),
        sources=tuple(_source_from_table(source, path) for source in table.get("source", ())),
        summary=table.get("summary", ""),
        licence=table.get("licence", ""),
        homepage=table.get("homepage", ""),
        mix=dict(mix),
    )


def _source_from_table(table: dict, path: Path) -> Source:
    _reject_unknown_keys(table, set(Source.__dataclass_fields__), path)
    _require_keys(table, ("kind", "files"), path)
    _require_choice(table["kind"], "source.kind", SOURCE_KINDS, path)
    return Source(**table)


def _require_keys(table: dict, keys: tuple[str, ...], path: Path) -> None:
    for key in keys:
        if key not in table:
            raise UserError(f"{path}: key '{key}' is missing")


def _reject_unknown_keys(table: dict, known: set[str], path: Path) -> None:
    for key in table:
        if key not in known:
            raise UserError(f"{path}: unknown key '{key}': choose from {', '.join(sorted(known))}")


def _require_choice(value: str, key: str, choices: tuple[str, ...], path: Path) -> None:
    if value not in choices:
        raise UserError(f"{path}: {key} = '{value}': choose from {', '.join(choices)}")
