"""Task files, `datasets/<name>/task.toml`: what they may hold, and how a mistake in one is reported."""

import tomllib
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dwellmoe.data.splits import raw_names
from dwellmoe.errors import UserError, unknown_name
from dwellmoe.files import data_file

TASKS_FOLDER = data_file("datasets")
SPLITS = ("train", "validation", "test")
ANSWER_FORMS = (
    *("true_false", "option_number", "option_letter", "final_letter", "choice_text"),
    *("rationale", "boxed", "code", "free_text"),
)
METRICS = ("accuracy", "pass_at_1", "rouge", "perplexity")
SOURCE_KINDS = {"package": ("package", "sha256"), "hub": ("hub_path",), "file": ()}
"""Kinds of source and the keys that each must have."""
TASK_TYPES = {
    **dict.fromkeys(("fields", "stop", "source"), list),
    **dict.fromkeys(("benchmark", "undisclosed", "chat"), bool),
    **dict.fromkeys(("answer_tokens", "shuffle_choices_seed"), int),
    "mix": dict,
}
TYPE_NAMES = {str: "a text", int: "a whole number", list: "a list", dict: "a table"}
SOURCE_TYPES = {"files": dict, "map": dict, "splits": dict, "below": dict, "shuffle_seed": int}


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
    """Lines of running text (key `text`) are joined to articles, each opened by a line of this pattern."""
    shuffle_seed: int | None = None
    """Records are shuffled before a share is cut off, where the source has them sorted by subject."""
    note: str = ""
    """Printed when the data set is read from this source."""


@dataclass(frozen=True)
class Task:
    """A data set: its wording, fields, answer rule, metric and sources."""

    name: str
    folder: Path
    sources: tuple[Source, ...]
    prompt: str = ""
    answer: str = ""
    form: str = "free_text"
    metric: str = "perplexity"
    fields: tuple[str, ...] = ()
    summary: str = ""
    licence: str = ""
    homepage: str = ""
    benchmark: bool = False
    """For evaluation alone: it has a test split only, which is measured whole, every request answered."""
    undisclosed: bool = False
    """Its authors ask that no example be shown: texts and token ids stay out of terminals and results."""
    chat: bool = False
    """Its prompts go through the model's chat template, where there is one."""
    chat_prompt: str = ""
    """Wording of the user's message in a chat; empty: as `prompt`. Likewise `chat_answer`."""
    chat_answer: str = ""
    stop: tuple[str, ...] = ()
    """A plain (not chat) answer ends before the first of these texts."""
    answer_tokens: int = 0
    """Tokens an answer may need; 0: as the command's options say."""
    program: str = ""
    """The program that judges an answer of form `code`, in which `{code}` stands for the answer's code."""
    shuffle_choices_seed: int | None = None
    """Seed of the order of the choices, drawn anew from it and from each record."""
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
    return _read_task_file(_task_path(name_or_path))


def _task_path(name_or_path: str) -> Path:
    if name_or_path.endswith(".toml"):
        return Path(name_or_path)
    if name_or_path not in task_names():
        raise unknown_name("data set", name_or_path, [*task_names(), "path/to/task.toml"])
    return TASKS_FOLDER / name_or_path / "task.toml"


def _read_task_file(path: Path) -> Task:
    table = _read_toml(path)
    _check_table(table, set(Task.__dataclass_fields__) - {"folder", "sources"} | {"source"}, TASK_TYPES, path)
    if "mix" in table:
        _check_mix(table["mix"], path)
    else:
        _require_keys(table, ("prompt", "answer", "form", "metric", "fields", "source"), path)
        _require_choice(table["form"], "form", ANSWER_FORMS, path)
        _require_choice(table["metric"], "metric", METRICS, path)
        _check_code(table, path)
    sources = tuple(_source_from_table(source, path) for source in table.pop("source", ()))
    settings: dict[str, Any] = {"name": path.resolve().parent.name} | table
    settings |= {name: tuple(table.get(name, ())) for name in ("fields", "stop")}
    return Task(folder=path.resolve().parent, sources=sources, **settings)


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, IsADirectoryError):
        raise UserError(f"no task file at '{path}'") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not a TOML file: {error}") from None


def _check_code(table: dict[str, Any], path: Path) -> None:
    if (table["form"] == "code") != (table["metric"] == "pass_at_1"):
        raise UserError(f"{path}: form = 'code' and metric = 'pass_at_1' belong together")
    if table["form"] == "code":
        _require_keys(table, ("program",), path)


def _check_mix(mix: dict[str, Any], path: Path) -> None:
    for name, weight in mix.items():
        if isinstance(weight, bool) or not isinstance(weight, int | float) or not weight > 0:
            raise UserError(f"{path}: the weight of '{name}' must be a number above 0, found {weight!r}")
        if "mix" in _read_toml(_task_path(name)):
            raise UserError(f"{path}: '{name}' is a mix itself, which a mix cannot hold")


def _source_from_table(table: dict[str, Any], path: Path) -> Source:
    _check_table(table, set(Source.__dataclass_fields__), SOURCE_TYPES, path, "source.")
    _require_keys(table, ("kind", "files"), path, "source.")
    _require_choice(table["kind"], "source.kind", SOURCE_KINDS, path)
    _require_keys(table, SOURCE_KINDS[table["kind"]], path, "source.")
    for expression in table.get("splits", {}).values():
        raw_names(expression)
    return Source(**table)


def _check_table(
    table: Mapping[str, Any], known: Collection[str], types: Mapping[str, type], path: Path, prefix: str = ""
) -> None:
    """Raises UserError for an unknown key or a value of a wrong type; not in `types`: a text."""
    for key, value in table.items():
        if key not in known:
            raise UserError(f"{path}: unknown key '{prefix}{key}': choose from {', '.join(sorted(known))}")
        expected = types.get(key, str)
        if not isinstance(value, expected):
            found = f"{type(value).__name__} {value!r:.40}"
            raise UserError(f"{path}: '{prefix}{key}' must be {TYPE_NAMES[expected]}, found {found}")


def _require_keys(table: Mapping[str, Any], keys: Collection[str], path: Path, prefix: str = "") -> None:
    """Raises UserError naming the first key that the table lacks."""
    for key in keys:
        if key not in table:
            raise UserError(f"{path}: key '{prefix}{key}' is missing")


def _require_choice(value: str, key: str, choices: Collection[str], path: Path) -> None:
    """Raises UserError, with the choices, for a value that is none of them."""
    if value not in choices:
        raise UserError(f"{path}: {key} = '{value}': choose from {', '.join(choices)}")
