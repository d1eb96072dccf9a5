"""Finds mistakes in a data set of the user's own early: without torch, before anything slow."""

import argparse
from collections.abc import Iterable
from pathlib import Path

from dwellmoe.data.examples import load_examples, splits_up_to
from dwellmoe.data.sources import choose_source, raw_splits, sources_of
from dwellmoe.data.task import Source, Task, load_task
from dwellmoe.errors import UserError
from dwellmoe.files import is_missing_folder

QUICK_BYTES = 8 << 20
"""Files up to this size are read whole, which takes less than a second; they are read again when used."""


def check_data(task: Task, splits: Iterable[str]) -> None:
    """Raises UserError for splits that no source has, and for files that are missing or, if they are small,
    malformed. Nothing is fetched.
    """
    for split in () if task.mix else splits:
        sources = sources_of(task, split)
        if all(source.kind == "file" for source in sources):
            choose_source(task, split)
            if _bytes_of(task, split) <= QUICK_BYTES and not load_examples(task, split):
                raise UserError(f"{task.name}: the split '{split}' is empty")


def check_command(options: argparse.Namespace) -> None:
    """Raises UserError for what is wrong with a command of `data_preparer.py` and is known by now."""
    if options.command == "fetch":
        for name in {*options.names} - {"all"}:
            load_task(name)
    elif options.command == "show":
        task = load_task(options.name, options.skip_faulty)
        check_data(task, [options.split or ("test" if task.benchmark else "train")])
        if options.tokenizer and is_missing_folder(options.tokenizer):
            raise UserError(f"no tokenizer at '{options.tokenizer}': no such folder")


def _bytes_of(task: Task, split: str) -> int:
    """Bytes of the files that are read for a split, those of earlier splits included."""
    paths = {path for each in splits_up_to(split) for path in _files(task, sources_of(task, each)[:1], each)}
    return sum(path.stat().st_size for path in paths if path.is_file())


def _files(task: Task, sources: Iterable[Source], split: str) -> Iterable[Path]:
    for source in sources:
        if source.kind == "file":
            yield from (task.folder / source.files[raw] for raw in raw_splits(source, split))
