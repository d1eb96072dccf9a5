"""Local JSON, JSONL, CSV and Parquet files as records, each with its file and line for error messages."""

import csv
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from dwellmoe.errors import UserError, unknown_name


class Record(NamedTuple):
    """A raw row and where it is from, such as `train.jsonl:12`."""

    where: str
    row: dict[str, Any]


def read_file(path: Path) -> Iterator[Record]:
    """Records of a local file, read by its ending. UserError names the file, and the line if there is one."""
    if path.suffix not in READERS:
        raise unknown_name(f"ending of '{path}'", path.suffix, READERS)
    try:
        yield from READERS[path.suffix](path)
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path}: cannot be read as text: {error}") from None


def _json_lines(path: Path) -> Iterator[Record]:
    with open(path, encoding="utf-8") as file:
        for line_number, line in enumerate(file, start=1):
            if line.strip():
                yield _record(f"{path}:{line_number}", _parse(line.strip(), str(path), line_number))


def _json_list(path: Path) -> Iterator[Record]:
    rows = _parse(path.read_text(encoding="utf-8"), str(path), 1)
    if not isinstance(rows, list):
        raise UserError(f"{path}: expected a list of records, found {type(rows).__name__}")
    for i, row in enumerate(rows, start=1):
        yield _record(f"{path}, record {i}", row)


def _parse(text: str, path: str, first_line: int) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        line = first_line + error.lineno - 1
        raise UserError(f"{path}:{line}: broken JSON: {error.msg} (column {error.colno})") from None


def _record(where: str, row: Any) -> Record:
    if not isinstance(row, dict):
        raise UserError(f"{where}: expected a record with named fields, found {type(row).__name__}")
    return Record(where, row)


def _csv_rows(path: Path) -> Iterator[Record]:
    with open(path, encoding="utf-8-sig", newline="") as file:
        rows = csv.DictReader(file, strict=True)
        for i, row in enumerate(rows, start=1):
            where = f"{path}:{rows.line_num}, record {i}"
            if None in row:
                raise UserError(
                    f"{where}: more cells than the {len(rows.fieldnames or ())} columns of the first line"
                )
            # A short line lacks its last keys: the error names the first of them that is needed.
            yield Record(where, {key: cell for key, cell in row.items() if cell is not None})


def _parquet_rows(path: Path) -> Iterator[Record]:
    import pyarrow.parquet

    try:
        rows = pyarrow.parquet.read_table(path).to_pylist()
    except pyarrow.ArrowInvalid as error:
        raise UserError(f"{path}: not a Parquet file: {error}") from None
    for i, row in enumerate(rows, start=1):
        yield Record(f"{path}, record {i}", row)


READERS: dict[str, Callable[[Path], Iterator[Record]]] = {
    ".jsonl": _json_lines,
    ".json": _json_list,
    ".csv": _csv_rows,
    ".parquet": _parquet_rows,
}
