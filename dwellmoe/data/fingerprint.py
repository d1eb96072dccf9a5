"""What makes two tokenisations the same: task, data and tokenizer. Nothing is fetched to find out."""

import json
from dataclasses import asdict
from typing import Any

from dwellmoe.data.download import file_sha256
from dwellmoe.data.download_cache import digest
from dwellmoe.data.examples import splits_up_to
from dwellmoe.data.sources import raw_splits, ready_source
from dwellmoe.data.task import Task, load_task, worded


def task_identity(task: Task, split: str) -> list:
    """All that a split's examples depend on, made from the sources that are here."""
    if task.mix:
        members = [worded(load_task(name), task.chat) for name in task.mix]
        return [task.mix, [task_identity(member, split) for member in members]]
    order = [] if task.shuffle_choices_seed is None else [task.shuffle_choices_seed]
    sources = [_source_identity(task, name) for name in splits_up_to(split)]
    layout = [task.layout, task.skip_faulty] if task.layout else []
    return [task.prompt, task.answer, task.fields, sources, *order, *layout]


def _source_identity(task: Task, split: str) -> list | None:
    """The source that a split is read from; None if no source of it is here."""
    source = ready_source(task, split)
    if source is None:
        return None
    # A user's own files count by content, not by date; the others are pinned by the source itself.
    local = [source.files[raw] for raw in raw_splits(source, split)] if source.kind == "file" else []
    return [asdict(source), [file_sha256(task.folder / name) for name in local]]


def tokenizer_identity(tokenizer: Any) -> list:
    """Vocabulary and rules of a tokenizer; its current padding and truncation do not count."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    rules = json.loads(backend.to_str()) if backend is not None else tokenizer.get_vocab()
    rules = {name: rule for name, rule in rules.items() if name not in ("padding", "truncation")}
    return [type(tokenizer).__name__, digest(rules), tokenizer.bos_token_id, tokenizer.eos_token_id]
