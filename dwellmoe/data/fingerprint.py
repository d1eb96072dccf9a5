"""Knows what makes two tokenisations the same: task, data and tokenizer. Does not tokenise."""

import json
from dataclasses import asdict
from typing import Any

from dwellmoe.data.download import SourceUnreachable, file_sha256
from dwellmoe.data.download_cache import digest
from dwellmoe.data.examples import choose_source
from dwellmoe.data.task import SPLITS, Task, load_task


def task_identity(task: Task, split: str) -> list:
    """All that a split's examples depend on; earlier splits too, since they take from later ones."""
    if task.mix:
        return [task.mix, [task_identity(load_task(name), split) for name in task.mix]]
    earlier_too = SPLITS[: SPLITS.index(split) + 1]
    order = [] if task.shuffle_choices_seed is None else [task.shuffle_choices_seed]
    sources = [_source_identity(task, name) for name in earlier_too]
    return [task.prompt, task.answer, task.fields, sources, *order]


def _source_identity(task: Task, split: str) -> list | None:
    try:
        source = choose_source(task, split)
    except SourceUnreachable:
        return None
    # A user's own files count by content, not by date; the others are pinned by the source itself.
    local = source.files.values() if source.kind == "file" else ()
    return [asdict(source), [file_sha256(task.folder / name) for name in local]]


def tokenizer_identity(tokenizer: Any) -> list:
    """Vocabulary and rules of a tokenizer; its padding and truncation of the moment do not count."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    rules = json.loads(backend.to_str()) if backend is not None else tokenizer.get_vocab()
    rules = {name: rule for name, rule in rules.items() if name not in ("padding", "truncation")}
    return [type(tokenizer).__name__, digest(rules), tokenizer.bos_token_id, tokenizer.eos_token_id]
