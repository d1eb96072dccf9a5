"""A split of a data set as examples: prompt, answer and what scoring needs."""

import random
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from dwellmoe.data.chat_turns import Chat, Remarks
from dwellmoe.data.conversations import Rendered
from dwellmoe.data.download import SourceUnreachable
from dwellmoe.data.fields import (
    check_answer,
    check_characters,
    map_record,
    shuffle_choices,
    with_messages,
    with_options,
)
from dwellmoe.data.files import Record
from dwellmoe.data.recognised import content_of, said
from dwellmoe.data.records import read_records
from dwellmoe.data.sources import choose_source, raw_splits
from dwellmoe.data.splits import SPLITS, select
from dwellmoe.data.task import Source, Task, check_split, load_task, worded
from dwellmoe.data.templates import fill
from dwellmoe.errors import UserError
from dwellmoe.log import warn_once

Item = TypeVar("Item")
Made = TypeVar("Made")


@dataclass(frozen=True)
class Example:
    """One request: the prompt, the reference answer, the record it was rendered from, and its task's name."""

    prompt: str
    answer: str
    fields: dict[str, Any]
    task: str = ""
    where: str = ""
    """File and line of the record."""
    chat: Chat | None = None
    """The conversation of which every answer is learned; None: `answer` alone is learned."""
    rendered: Rendered | None = None
    """That conversation as text, once it is known how it is worded."""


def load_examples(
    task: Task, split: str, *, seed: int = 0, mix_available_only: bool = False
) -> list[Example]:
    """Examples of one split in the source's order; none is in two splits. `seed` draws and shuffles a mix.

    Raises UserError for an unknown or empty split, a source that is out of reach (for a mix: unless
    `mix_available_only`), or a record that lacks a field or holds one of a wrong type.
    """
    check_split(split)
    if task.mix:
        return _draw(task, split, _members(task, split, mix_available_only), seed)
    examples = _render_split(task, split)
    kept = _unseen(task, split, examples)
    if not kept:
        why = (
            "every one of its records is in an earlier split, too"
            if examples
            else _without_record(task, split)
        )
        raise UserError(f"{task.name}: the split '{split}' is empty: {why}")
    if len(kept) < len(examples):
        dropped = len(examples) - len(kept)
        warn_once(f"{task.name}: {dropped} of {split} left out, because an earlier split has the same")
    return kept


def _without_record(task: Task, split: str) -> str:
    source = choose_source(task, split)
    files = ", ".join(source.files[raw] for raw in raw_splits(source, split))
    return f"{files} holds no record for it" + (" that source.below lets through" if source.below else "")


def fetch_for(task: Task, split: str) -> None:
    """Fetches, as far as it is in reach, what the examples of a split are made from."""
    for name in task.mix:
        fetch_for(load_task(name), split)
    for needed in () if task.mix else splits_up_to(split):
        with suppress(SourceUnreachable):
            choose_source(task, needed)


def splits_up_to(split: str) -> tuple[str, ...]:
    """The split and those before it, whose examples it leaves out."""
    return SPLITS[: SPLITS.index(split) + 1]


def seeded_sample(items: Sequence[Item], limit: int | None, seed: int) -> list[Item]:
    """At most `limit` of the items, drawn by `seed`, none twice, in their old order; None keeps all."""
    if limit is None or limit >= len(items):
        return list(items)
    chosen = sorted(random.Random(seed).sample(range(len(items)), limit))
    return [items[position] for position in chosen]


def _render_split(task: Task, split: str) -> list[Example]:
    source = choose_source(task, split)
    expression = source.splits.get(split, split)
    if source.kind == "file":  # a fault in another split's part of the file shows before any work
        return select(expression, lambda raw: _all_examples(task, source, raw))
    records = select(expression, lambda raw: read_records(task, source, raw))
    return [_example(task, source, record) for record in records]


def _all_examples(task: Task, source: Source, raw: str) -> list[Example]:
    if not task.layout:
        return [_example(task, source, record) for record in read_records(task, source, raw)]
    remarks: Remarks = Counter()
    records = read_records(task, replace(source, shuffle_seed=None), raw)
    found = usable(task, records, lambda record: _recognised_example(task, source, record, remarks))
    said(str(task.folder / source.files[raw]), remarks)
    examples = [example for example in found if example]
    if source.shuffle_seed is not None:  # only now: of several faults the first of the file is named
        random.Random(source.shuffle_seed).shuffle(examples)
    return examples


def usable(task: Task, items: Sequence[Item], make: Callable[[Item], Made]) -> list[Made]:
    """What is made of each item. Faults are counted: the first is a UserError or, with `task.skip_faulty`,
    said, and the items with one are left out.
    """
    made, faults = [], []
    for item in items:
        try:
            made.append(make(item))
        except UserError as error:
            faults.append(str(error))
    if not faults:
        return made
    counted = f"{len(faults):,} of {len(items):,} records of {task.name} cannot be used"
    if not task.skip_faulty:
        raise UserError(f"{faults[0]} ({counted}; --skip_faulty leaves them out)")
    warn_once(f"{counted} and are left out, the first: {faults[0]}")
    if not made:
        raise UserError(f"{task.name}: no record is left: {faults[0]}")
    return made


def _recognised_example(task: Task, source: Source, record: Record, remarks: Remarks) -> Example | None:
    """The example of a record of a file without a task file; None where it holds nothing."""
    try:
        content = content_of(task.layout, record.row, remarks)
    except UserError as error:
        raise UserError(f"{record.where}: {error}") from None
    if content is None:
        return None
    example = _example(task, replace(source, map={}), Record(record.where, content.fields))
    return replace(example, chat=content.chat)


def _example(task: Task, source: Source, record: Record) -> Example:
    try:
        fields = map_record(record.row, source.map)
        fields = {name: fields[name] for name in task.fields}
        if task.shuffle_choices_seed is not None:
            fields = shuffle_choices(fields, task.shuffle_choices_seed)
        fields = with_messages(with_options(fields))
        check_characters(fields)
        answer = fill(task.answer, fields)
        check_answer(answer, task.form)
        return Example(fill(task.prompt, fields), answer, fields, task.name, record.where)
    except KeyError as error:
        raise record.lacks(error.args[0]) from None
    except (ValueError, TypeError) as error:
        raise UserError(f"{record.where}: {error}") from None


def _unseen(task: Task, split: str, examples: list[Example]) -> list[Example]:
    """The held-out side gives way, so that train stays as published and what is measured is truly unseen."""
    seen = set()
    for earlier in splits_up_to(split)[:-1]:
        with suppress(SourceUnreachable):  # what cannot be fetched here was not trained on here
            seen |= {(example.prompt, example.answer) for example in _render_split(task, earlier)}
    return [example for example in examples if (example.prompt, example.answer) not in seen]


def _members(task: Task, split: str, available_only: bool) -> dict[str, list[Example]]:
    """Examples of each member of a mix."""
    pools: dict[str, list[Example]] = {}
    missing: dict[str, str] = {}
    for name in task.mix:
        try:
            pools[name] = load_examples(worded(load_task(name), task.chat), split)
        except SourceUnreachable as error:
            missing[name] = str(error)
    if missing:
        _check_missing(task, split, missing, available_only)
    return pools


def _check_missing(task: Task, split: str, reasons: Mapping[str, str], available_only: bool) -> None:
    """Prints which members are left out. Raises UserError if that is not wanted, or if none is left."""
    names = ", ".join(reasons)
    if available_only and len(reasons) < len(task.mix):
        warn_once(f"{task.name}, {split}: left out, because out of reach: {names}")
        return
    remedy = "" if available_only else "; --mix_available_only goes without them"
    raise UserError(
        f"{task.name}, {split}: out of reach: {names}{remedy} (first reason: {next(iter(reasons.values()))})"
    )


def _draw(task: Task, split: str, pools: Mapping[str, Sequence[Item]], seed: int) -> list[Item]:
    """The largest mix that keeps the task's weights and takes nothing twice, shuffled by `seed`."""
    scale = min(len(pool) / task.mix[name] for name, pool in pools.items())
    drawn = {name: seeded_sample(pool, int(scale * task.mix[name]), seed) for name, pool in pools.items()}
    shares = ", ".join(f"{len(items)} of {len(pools[name])} {name}" for name, items in drawn.items())
    warn_once(f"{task.name}, {split}: {shares}")
    mixed = [item for items in drawn.values() for item in items]
    random.Random(seed).shuffle(mixed)
    return mixed
