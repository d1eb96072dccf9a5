"""Knows how a task's split becomes examples: prompt, answer and what scoring needs; no tokens yet."""

from dataclasses import dataclass
from typing import Any

from dwellmoe.data.download import SourceUnreachable
from dwellmoe.data.fields import check_answer, fill, map_record, shuffle_choices, with_options
from dwellmoe.data.files import Record
from dwellmoe.data.mix import check_missing, draw
from dwellmoe.data.records import make_ready, read_records
from dwellmoe.data.splits import raw_names, select
from dwellmoe.data.task import SPLITS, Source, Task, check_split, load_task, task_names
from dwellmoe.errors import UserError
from dwellmoe.log import warn_once

LOCAL_ENDINGS = (".jsonl", ".json", ".csv", ".parquet")


@dataclass(frozen=True)
class Example:
    """One request: the prompt, the reference answer, the record it was rendered from, and its task's name."""

    prompt: str
    answer: str
    fields: dict[str, Any]
    task: str = ""


def load_examples(
    task: Task, split: str, *, seed: int = 0, mix_available_only: bool = False
) -> list[Example]:
    """Examples of one split in the source's order; none is in two splits. `seed` draws and shuffles a mix.

    Raises UserError for an unknown split, a source that is out of reach (for a mix: unless
    `mix_available_only`), or a record that lacks a field or holds one of a wrong type.
    """
    check_split(split)
    if task.mix:
        return draw(task, split, _members(task, split, mix_available_only), seed)
    examples = _render_split(task, split)
    kept = _unseen(task, split, examples)
    if len(kept) < len(examples):
        dropped = len(examples) - len(kept)
        warn_once(f"{task.name}: {dropped} of {split} left out, because an earlier split has the same")
    return kept


def choose_source(task: Task, split: str) -> Source:
    """The first source that has the split and is in reach, what it holds made ready; a note it owes is said.

    Files named after the split beside the task file (`train.jsonl`, ...) come before every other source.
    """
    reasons = []
    for source in sources_of(task, split):
        try:
            for raw_split in raw_names(source.splits.get(split, split)):
                make_ready(task, source, raw_split)
        except SourceUnreachable as error:
            reasons.append(str(error))
        else:
            if source.note:
                warn_once(f"{task.name}: {source.note}")
            return source
    if task.benchmark and not reasons:
        raise _only_a_test(task, split)
    raise _out_of_reach(task, split, reasons)


def sources_of(task: Task, split: str) -> list[Source]:
    """Every source that has the split, in the order of choice, in reach or not."""
    return [source for source in [*_beside(task, split), *task.sources] if _offers(source, split)]


def _only_a_test(task: Task, split: str) -> SourceUnreachable:
    others = [name for name in task_names() if not load_task(name).benchmark]
    return SourceUnreachable(
        f"{task.name} is a benchmark with a test split alone and has no '{split}': it can be evaluated "
        f"(inference.py, --split test) but not trained on; to train, choose from {', '.join(others)}"
    )


def _out_of_reach(task: Task, split: str, reasons: list[str]) -> UserError:
    why = "; ".join(reasons) or "no source offers this split"
    endings = f"{split}{LOCAL_ENDINGS[0]} (or {', '.join(LOCAL_ENDINGS[1:])})"
    remedy = f"{endings} with the fields {', '.join(task.fields)} in '{task.folder}'"
    return SourceUnreachable(f"{task.name}, {split}: {why}; your own file serves too: {remedy}")


def _beside(task: Task, split: str) -> list[Source]:
    names = [f"{split}{ending}" for ending in LOCAL_ENDINGS if (task.folder / f"{split}{ending}").exists()]
    return [Source(kind="file", files={split: name}) for name in names[:1]]


def _offers(source: Source, split: str) -> bool:
    return all(name in source.files for name in raw_names(source.splits.get(split, split)))


def _render_split(task: Task, split: str) -> list[Example]:
    source = choose_source(task, split)
    records = select(source.splits.get(split, split), lambda raw: read_records(task, source, raw))
    return [_example(task, source, record) for record in records]


def _example(task: Task, source: Source, record: Record) -> Example:
    try:
        fields = map_record(record.row, source.map)
        for name in task.fields:
            if name not in fields:
                raise KeyError(name)
        if task.shuffle_choices_seed is not None:
            fields = shuffle_choices(fields, task.shuffle_choices_seed)
        fields = with_options(fields)
        answer = fill(task.answer, fields)
        check_answer(answer, task.form)
        return Example(fill(task.prompt, fields), answer, fields, task.name)
    except KeyError as error:
        keys = ", ".join(record.row)
        raise UserError(f"{record.where}: key {error} is missing; the record has {keys}") from None
    except (ValueError, TypeError) as error:
        raise UserError(f"{record.where}: {error}") from None


def _unseen(task: Task, split: str, examples: list[Example]) -> list[Example]:
    """The held-out side gives way, so that train stays as published and what is measured is truly unseen."""
    seen = set()
    for earlier in SPLITS[: SPLITS.index(split)]:
        try:
            seen |= {(example.prompt, example.answer) for example in _render_split(task, earlier)}
        except SourceUnreachable:
            continue  # what cannot be had here was not trained on here
    return [example for example in examples if (example.prompt, example.answer) not in seen]


def _members(task: Task, split: str, available_only: bool) -> dict[str, list[Example]]:
    pools, missing = {}, {}
    for name in task.mix:
        try:
            pools[name] = load_examples(load_task(name), split)
        except SourceUnreachable as error:
            missing[name] = str(error)
    check_missing(task, split, missing, available_only)
    return pools
