"""Task files, `datasets/<name>/task.toml`: what they may hold, and how one is read."""

import tomllib
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from dwellmoe.data import keys
from dwellmoe.data.agreement import check_agreement
from dwellmoe.data.fields import check_rule
from dwellmoe.data.files import READERS
from dwellmoe.data.keys import Place, choice, list_of, table_of, table_with
from dwellmoe.data.recognised import recognised
from dwellmoe.data.splits import SPLITS, raw_names
from dwellmoe.errors import UserError, first_line, unknown_name
from dwellmoe.files import check_name, data_file
from dwellmoe.log import warn_once

TASKS_FOLDER = data_file("datasets")
ANSWER_FORMS = (
    *("true_false", "option_number", "option_letter", "final_letter", "choice_text"),
    *("rationale", "boxed", "code", "free_text"),
)
METRICS = ("accuracy", "pass_at_1", "rouge", "perplexity")
SOURCE_KINDS = {"package": ("package", "sha256"), "hub": ("hub_path",), "file": ()}
"""Kinds of source and the keys that each must have."""


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
    layout: str = ""
    """The form of its records (recognised.py), where it is a data file without a task file."""
    skip_faulty: bool = False
    """Of such a file: records that cannot be used are left out and counted, not refused."""

    def __post_init__(self):
        check_name(self.name, "the name of a data set")

    @property
    def of_conversations(self) -> bool:
        """Whether its examples are conversations of which every answer is learned."""
        return bool(self.layout) and self.fields == ("messages",)


def check_split(split: str) -> None:
    """Raises UserError for a split that is not one of the three."""
    if split not in SPLITS:
        raise unknown_name("split", split, SPLITS)


def task_names() -> list[str]:
    """Names of the data sets that come with the project: the folders that hold a task file."""
    return sorted(path.parent.name for path in TASKS_FOLDER.glob("*/task.toml"))


def load_task(name_or_path: str, skip_faulty: bool = False) -> Task:
    """The task of that name, the one in a task file, or the one that a data file of a usual layout is.

    `skip_faulty` leaves out the records of such a data file that cannot be used. Raises UserError.
    """
    if name_or_path.endswith(tuple(READERS)):
        return _recognised_task(Path(name_or_path), skip_faulty)
    if skip_faulty:
        warn_once(f"--skip_faulty has no effect on {name_or_path}: it is for data files without a task file")
    return _read_task_file(_task_path(name_or_path))


def _task_path(name_or_path: str) -> Path:
    if name_or_path.endswith(".toml"):
        return Path(name_or_path)
    if name_or_path not in task_names():
        others = ["path/to/task.toml", f"path/to/file ({', '.join(READERS)})"]
        raise unknown_name("data set", name_or_path, [*task_names(), *others])
    return TASKS_FOLDER / name_or_path / "task.toml"


def worded(task: Task, chat: bool) -> Task:
    """The task in its plain words or, with `chat`, in those for a message of a chat, where a reply ends by
    itself and needs no stop word.
    """
    if not chat:
        return replace(task, chat=False)
    prompt = task.chat_prompt or task.prompt.strip()
    return replace(task, chat=True, prompt=prompt, answer=task.chat_answer or task.answer.strip(), stop=())


def _recognised_task(path: Path, skip_faulty: bool) -> Task:
    sources, settings = recognised(path)
    folder = path.resolve().parent
    return Task(folder=folder, sources=(Source(**sources),), skip_faulty=skip_faulty, **settings)


def _read_task_file(path: Path) -> Task:
    table = _read_toml(path)
    if "mix" in table:
        _MIX_FILE(table, Place(path))
        _check_members(table["mix"], path)
    else:
        _TASK_FILE(table, Place(path))
        check_agreement(table, path)
    sources = tuple(Source(**source) for source in table.pop("source", ()))
    folder = path.resolve().parent
    settings: dict[str, Any] = {"name": folder.name} | table
    settings |= {name: tuple(table.get(name, ())) for name in ("fields", "stop")}
    return Task(folder=folder, sources=sources, **settings)


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
        raise UserError(f"no task file at '{path}'") from None
    except OSError as error:
        raise UserError(f"task file '{path}': {error.strerror}") from None
    except (ValueError, RecursionError) as error:  # of TOML, of UTF-8, a number of 5,000 digits
        raise UserError(f"{path}: not a TOML file: {first_line(error)}") from None


def _check_members(mix: dict[str, float], path: Path) -> None:
    for name in mix:
        if "mix" in _read_toml(_task_path(name)):
            raise UserError(f"{path}: '{name}' is a mix itself, which a mix cannot hold")


def _source(table: Any, place: Place) -> None:
    """A check for one table of `[[source]]`."""
    _SOURCE_TABLE(table, place)
    for key in SOURCE_KINDS[table["kind"]]:
        if key not in table:
            raise UserError(f"{place.file}: key '{place.at(key).key}' is missing")


def _expression(value: Any, place: Place) -> None:
    """A check for what a split is made of."""
    keys.WORD(value, place)
    try:
        raw_names(value)
    except UserError as error:
        raise place.error(f"is {value!r:.60}: {error}") from None


_SOURCE_TABLE = table_with(
    {
        "kind": choice(SOURCE_KINDS),
        "files": table_of(keys.FILE_PATH, keys.SPLIT_NAME, at_least=1),
        "map": table_of(check_rule),
        "splits": table_of(_expression, choice(SPLITS)),
        "package": keys.REQUIREMENT,
        "sha256": keys.CHECKSUM,
        "hub_path": keys.WORD,
        **dict.fromkeys(("hub_config", "revision", "root", "unique_by", "note"), keys.TEXT),
        "below": table_of(keys.NUMBER),
        "article_start": keys.pattern,
        "shuffle_seed": keys.WHOLE,
    },
    required=("kind", "files"),
)
_ABOUT = {"name": keys.name, **dict.fromkeys(("summary", "licence", "homepage"), keys.TEXT)}
_MIX_FILE = table_with(_ABOUT | {"chat": keys.BOOL, "mix": table_of(keys.WEIGHT, at_least=1)})
_TASK_FILE = table_with(
    _ABOUT
    | dict.fromkeys(("prompt", "answer", "chat_prompt", "chat_answer", "program"), keys.template)
    | dict.fromkeys(("benchmark", "undisclosed", "chat"), keys.BOOL)
    | {
        "form": choice(ANSWER_FORMS),
        "metric": choice(METRICS),
        "fields": list_of(keys.WORD),
        "stop": list_of(keys.NOT_EMPTY),
        "answer_tokens": keys.COUNT,
        "shuffle_choices_seed": keys.WHOLE,
        "source": list_of(_source, "tables, each headed [[source]]"),
        "mix": keys.TABLE,
    },
    required=("prompt", "answer", "form", "metric", "fields"),
)
