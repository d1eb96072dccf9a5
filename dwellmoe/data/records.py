"""Raw records of a source: local files are read each time, packages and the hub once, then the cache."""

import json
import math
import os
import random
import re
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from dwellmoe.data.download_cache import build_once, cache_folder, digest
from dwellmoe.data.fields import columns_of
from dwellmoe.data.files import Record, read_file
from dwellmoe.data.remote import READERS
from dwellmoe.data.task import Source, Task
from dwellmoe.errors import UserError


def read_records(task: Task, source: Source, raw_split: str) -> list[Record]:
    """Records of one raw split. Raises UserError."""
    if source.kind == "file":
        rows = read_file(task.folder / source.files[raw_split], _columns(task, source))
        records = list(_prepared(rows, source))
    else:
        make_ready(task, source, raw_split)
        where = f"{task.name}, {source.kind} split '{raw_split}'"
        with open(_cached_at(task, source, raw_split), encoding="utf-8") as lines:
            rows = enumerate(map(json.loads, lines), start=1)
            records = [Record(f"{where}, record {i}", row) for i, row in rows]
    if source.shuffle_seed is not None:
        random.Random(source.shuffle_seed).shuffle(records)
    return records


def make_ready(task: Task, source: Source, raw_split: str) -> None:
    """Fetches a raw split into the cache unless it is there. Raises SourceUnreachable."""
    if source.kind == "file":
        if not is_ready(task, source, raw_split):
            path = task.folder / source.files[raw_split]
            folder = ", which is a folder" if os.path.isdir(path) else ""
            raise UserError(f"{task.name}: no data file at '{path}'{folder}")
        return

    def build(path: Path) -> None:
        rows = (Record("", row) for row in READERS[source.kind](source, raw_split))
        with open(path, "w", encoding="utf-8") as file:
            for record in _prepared(rows, source):
                file.write(json.dumps(record.row, ensure_ascii=False) + "\n")

    target = _cached_at(task, source, raw_split)
    build_once(target.parent.name, target.name, build)


def is_ready(task: Task, source: Source, raw_split: str) -> bool:
    """Whether the raw split can be read without any network."""
    if source.kind == "file":
        path = task.folder / source.files[raw_split]
        return os.path.exists(path) and not os.path.isdir(path)  # which take a name that no file can have
    return _cached_at(task, source, raw_split).exists()


def _columns(task: Task, source: Source) -> set[str]:
    """The columns of a file that are needed: what lies in the others does not matter."""
    rows = {source.root} if source.root else columns_of(source.map) or {*task.fields}
    return {
        *rows,
        *source.below,
        *filter(None, [source.unique_by]),
        *(["text"] if source.article_start else []),
    }


def _cached_at(task: Task, source: Source, raw_split: str) -> Path:
    about_rows = asdict(source) | {"files": source.files[raw_split]}
    for name in ("map", "splits", "note", "shuffle_seed"):
        del about_rows[name]
    return cache_folder() / "records" / f"{task.name}-{raw_split}-{digest(about_rows)}.jsonl"


def _prepared(records: Iterable[Record], source: Source) -> Iterator[Record]:
    records = _distinct(records, source)
    return _articles(records, source.article_start) if source.article_start else records


def _distinct(records: Iterable[Record], source: Source) -> Iterator[Record]:
    seen = set()
    for record in records:
        if any(_number(record, key) >= bound for key, bound in source.below.items()):
            continue
        if source.unique_by:
            identity = _value(record, source.unique_by, str | int | float | bool | None, "a text or a number")
            if identity in seen:
                continue
            seen.add(identity)
        row = _value(record, source.root, dict, "a record") if source.root else record.row
        yield Record(record.where, row)


def _number(record: Record, key: str) -> float:
    """The value at a key; a cell of a CSV file is a text, and is read as the number that it shows."""
    value = _value(record, key, str | int | float, "a number")
    try:
        number = float(value)
    except (ValueError, OverflowError):
        number = math.nan
    if not math.isfinite(number):
        raise UserError(f"{record.where}: '{key}' must be a number, found {value!r:.60}")
    return number


def _articles(records: Iterable[Record], start: str) -> Iterator[Record]:
    """Lines of running text joined to whole articles; a line that matches `start` opens the next one."""
    where, lines = "", []
    for record in records:
        line = _value(record, "text", str, "a text")
        if re.match(start, line):
            yield from _article(where, lines)
            lines = []
        where = where if lines else record.where
        lines.append(line)
    yield from _article(where, lines)


def _article(where: str, lines: list[str]) -> Iterator[Record]:
    text = "".join(lines).strip()
    if text:
        yield Record(where, {"text": text})


def _value(record: Record, key: str, kind: Any, expected: str) -> Any:
    if key not in record.row:
        raise record.lacks(key)
    value = record.row[key]
    if not isinstance(value, kind):
        raise UserError(f"{record.where}: '{key}' must be {expected}, found {value!r:.60}")
    return value
