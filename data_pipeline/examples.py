"""Knows how a task's split becomes examples: prompt, answer and what scoring needs; no tokens yet."""

import sys
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from data_pipeline.fields import fill, map_record, with_options
from data_pipeline.sources import hub_answers, read_raw
from data_pipeline.splits import raw_names, select
from data_pipeline.task import SPLITS, Source, Task
from errors import UserError


@dataclass(frozen=True)
class Example:
    """One request: the prompt, the reference answer, and the record it was rendered from."""

    prompt: str
    answer: str
    fields: dict[str, Any]


def load_examples(task: Task, split: str) -> list[Example]:
    """Examples of one split, in the source's order, never mixed between splits.

    Raises UserError for an unknown split, a source that is out of reach, or a record that lacks a field.
    """
    if split not in SPLITS:
        raise UserError(f"unknown split '{split}': choose from {', '.join(SPLITS)}")
    source = choose_source(task, split)
    rows = select(source.splits.get(split, split), lambda raw: _read_cached(_Hashable(task), source.kind, raw))
    return [_example(task, source, split, number, row) for number, row in enumerate(rows, start=1)]


def choose_source(task: Task, split: str) -> Source:
    """The first source that has the split and can be reached; the choice is printed where a note is owed."""
    fitting = [source for source in task.sources if _has_split(source, split)]
    if not fitting:
        raise UserError(f"{task.name}: no source offers the split '{split}'")
    for source in fitting:
        if source.kind != "hub" or hub_answers():
            if source.note:
                print(f"{task.name}: {source.note}", file=sys.stderr)
            return source
    raise UserError(
        f"{task.name}: split '{split}' is on the hub ('{fitting[0].hub_path}') only, and the hub does not answer; "
        "give a local file instead (see 'A file of your own' in the README)"
    )


def _has_split(source: Source, split: str) -> bool:
    return all(name in source.files for name in raw_names(source.splits.get(split, split)))


def _example(task: Task, source: Source, split: str, number: int, row: dict) -> Example:
    where = f"{task.name}, {_place(task, source, split)}, record {number}"
    try:
        fields = with_options(map_record(row, source.map))
        return Example(fill(task.prompt, fields), fill(task.answer, fields), fields)
    except KeyError as error:
        raise UserError(f"{where}: key {error} is missing; the record has {', '.join(row)}") from None
    except (UserError, ValueError, TypeError) as error:
        raise UserError(f"{where}: {error}") from None


def _place(task: Task, source: Source, split: str) -> str:
    expression = source.splits.get(split, split)
    if source.kind == "file" and expression in source.files:
        return str(task.folder / source.files[expression])
    return f"{source.kind} split '{expression}'"


class _Hashable:
    """A task as a cache key: by identity of its folder, since it holds dicts."""

    def __init__(self, task: Task):
        self.task = task

    def __hash__(self) -> int:
        return hash(self.task.folder)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Hashable) and self.task == other.task


@lru_cache(maxsize=4)
def _read_cached(key: _Hashable, kind: str, raw_split: str) -> list[dict]:
    source = next(source for source in key.task.sources if source.kind == kind and raw_split in source.files)
    return read_raw(key.task, source, raw_split)
