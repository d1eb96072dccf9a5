"""Local JSON, JSONL, CSV and Parquet files as records, each with its file and line for error messages."""

import csv
import itertools
import json
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from dwellmoe.errors import UserError, first_line, unknown_name

csv.field_size_limit(2**31 - 1)  # Python's own limit is 131,072 characters a cell

SHOWN_KEYS = 30
PARQUET_ROWS = 1024
"""Rows of a Parquet file that are in memory at a time."""


class Record(NamedTuple):
    """A raw row and where it is from, such as `train.jsonl:12`."""

    where: str
    row: dict[str, Any]

    def lacks(self, key: str) -> UserError:
        """The error for a key that is not there; it names the first that are, in one line."""
        names = [repr(name)[1:-1] for name in self.row]
        more = ", ..." if len(names) > SHOWN_KEYS else ""
        shown = ", ".join(names[:SHOWN_KEYS])
        return UserError(f"{self.where}: key '{key}' is missing; the record has {shown}{more}")


def read_file(path: Path, columns: Collection[str]) -> Iterator[Record]:
    """Records of a local file, read by its ending. UserError names the file, and the line if there is one.

    `columns` are those that are needed: where a file keeps its columns apart, what is wrong with another one
    does not matter.
    """
    if path.suffix not in READERS:
        raise unknown_name(f"ending of '{path}'", path.suffix, READERS)
    try:
        yield from READERS[path.suffix](path, columns)
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: cannot be read as text: it is not UTF-8 (byte {error.start})") from None
    except csv.Error as error:
        raise UserError(f"{path}: cannot be read as text: {error}") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror or first_line(error)}") from None


def first_record(path: Path) -> Record:
    """The first record of a local file, with all its fields. UserError as of `read_file`, or for none."""
    if not path.is_file():
        raise UserError(f"no data file at '{path}'")
    columns = _parquet_columns(path) if path.suffix == ".parquet" else ()
    for record in read_file(path, columns):
        return record
    raise UserError(f"{path}: holds no record")


def _json_lines(path: Path, _: Collection[str]) -> Iterator[Record]:
    with open(path, encoding="utf-8-sig") as file:
        for line_number, line in enumerate(file, start=1):
            # A byte-order mark stands within a file where several were put together.
            if text := line.strip().removeprefix("\ufeff"):
                if text.startswith("["):
                    raise UserError(
                        f"{path}:{line_number}: expected a record with named fields, found list: a file that "
                        "is one JSON list is called .json, not .jsonl"
                    )
                yield _record(f"{path}:{line_number}", _parse(text, str(path), line_number))


def _json_list(path: Path, _: Collection[str]) -> Iterator[Record]:
    rows = _parse(path.read_text(encoding="utf-8-sig"), str(path), 1)
    if not isinstance(rows, list):
        raise UserError(f"{path}: expected a list of records, found {type(rows).__name__}")
    for i, row in enumerate(rows, start=1):
        yield _record(f"{path}, record {i}", row)


def _parse(text: str, path: str, first_line: int) -> Any:
    try:
        return _DECODER.decode(text)
    except json.JSONDecodeError as error:
        line = first_line + error.lineno - 1
        lines = error.msg == "Extra data" and path.endswith(".json")
        by_lines = ": a file of one record a line is called .jsonl, not .json" if lines else ""
        raise UserError(f"{path}:{line}: broken JSON: {error.msg} (column {error.colno}){by_lines}") from None
    except RecursionError:
        raise UserError(f"{path}:{first_line}: broken JSON: too many brackets within one another") from None
    except ValueError as error:
        raise UserError(f"{path}:{first_line}: broken JSON: {error}") from None


def _table(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    table = dict(pairs)
    if len(table) < len(pairs):
        raise UserError(f"key '{_repeated(key for key, _ in pairs)}' twice in one record")
    return table


def _whole_number(digits: str) -> int | str:
    """A number of more digits than Python converts stays the text that it is."""
    return int(digits) if len(digits) < 4000 else digits


_DECODER = json.JSONDecoder(object_pairs_hook=_table, parse_int=_whole_number)


def _repeated(names: Iterable[str]) -> str | None:
    """The first name that is there twice."""
    return next((name for name, count in Counter(names).items() if count > 1), None)


def _record(where: str, row: Any) -> Record:
    if not isinstance(row, dict):
        raise UserError(f"{where}: expected a record with named fields, found {type(row).__name__}")
    return Record(where, row)


def _csv_rows(path: Path, columns: Collection[str]) -> Iterator[Record]:
    with open(path, encoding="utf-8-sig", newline="") as file:
        rows = csv.DictReader(file, strict=True)
        _check_columns(path, rows.fieldnames or (), columns)
        for i, row in enumerate(rows, start=1):
            where = f"{path}:{rows.line_num}, record {i}"
            if None in row:
                raise UserError(
                    f"{where}: more cells than the {len(rows.fieldnames or ())} columns of the first line"
                )
            # A short line lacks its last keys: the error names the first of them that is needed.
            yield Record(where, {key: cell for key, cell in row.items() if cell is not None})


def _check_columns(path: Path, names: Collection[str], needed: Collection[str]) -> None:
    if name := _repeated(name for name in names if name in needed):
        raise UserError(f"{path}: two columns are called '{name}'")


def _parquet_rows(path: Path, columns: Collection[str]) -> Iterator[Record]:
    file = _parquet_file(path)
    names = file.schema_arrow.names
    _check_columns(path, names, columns)
    if lost := [name for name in columns if name not in names]:
        raise UserError(f"{path}: key '{lost[0]}' is missing; the file has {', '.join(names)}")
    batches = _as_parquet(path, lambda: file.iter_batches(PARQUET_ROWS, columns=[*columns]))
    numbers = itertools.count(1)
    while (batch := _as_parquet(path, lambda: next(batches, None))) is not None:
        for row in _as_parquet(path, batch.to_pylist):
            yield Record(f"{path}, record {next(numbers)}", row)


def _parquet_file(path: Path) -> Any:
    import pyarrow.parquet

    return _as_parquet(path, lambda: pyarrow.parquet.ParquetFile(path, page_checksum_verification=True))


def _parquet_columns(path: Path) -> list[str]:
    return _parquet_file(path).schema_arrow.names


def _as_parquet(path: Path, read: Callable[[], Any]) -> Any:
    """What `read` gives. UserError for a file that is no Parquet, damaged, or holds dates beyond Python's."""
    try:
        return read()
    except (OSError, ValueError, OverflowError, NotImplementedError) as error:  # Arrow's errors are of these
        raise UserError(f"{path}: cannot be read as Parquet: {first_line(error)}") from None


READERS: dict[str, Callable[[Path, Collection[str]], Iterator[Record]]] = {
    ".jsonl": _json_lines,
    ".json": _json_list,
    ".csv": _csv_rows,
    ".parquet": _parquet_rows,
}
