"""Which source a split of a data set is read from.

What the task file names is used or refused. Files beside it that are called after a split (`train.jsonl`)
count where it names nothing, or nothing that is in reach. A single file is split by itself. What is not named
is said.
"""

from dataclasses import replace

from dwellmoe.data.download import SourceUnreachable
from dwellmoe.data.records import is_ready, make_ready
from dwellmoe.data.splits import SPLITS, raw_names
from dwellmoe.data.task import Source, Task, load_task, task_names
from dwellmoe.errors import UserError
from dwellmoe.log import warn_once

LOCAL_ENDINGS = (".jsonl", ".json", ".csv", ".parquet")
SHARES = {"train": "[:80%]", "validation": "[80%:90%]", "test": "[90%:]"}
"""How a single file is split, after its records are shuffled by `SHUFFLE_SEED`."""
SHUFFLE_SEED = 0
_NAMES_SPLITS = 'which source.splits may cut out of another, such as validation = "train[90%:]"'


def sources_of(task: Task, split: str) -> list[Source]:
    """Every source that has the split, in the order of choice, in reach or not."""
    named = [source for source in _named(task) if _offers(source, split)]
    if any(source.kind == "file" for source in named):
        return named
    return [*named, *(source for source in _beside(task, split) if _offers(source, split))]


def raw_splits(source: Source, split: str) -> list[str]:
    """The source's own splits that a split is made of."""
    return raw_names(source.splits.get(split, split))


def is_here(task: Task, source: Source, split: str) -> bool:
    """Whether the source's part of a split can be read without any network."""
    return all(is_ready(task, source, raw_split) for raw_split in raw_splits(source, split))


def ready_source(task: Task, split: str) -> Source | None:
    """The first source of the split that is here, which is said as needed; a missing file of the user's is
    not passed over for the next source.
    """
    for source in sources_of(task, split):
        if is_here(task, source, split):
            return _said(task, split, source)
        if source.kind == "file":
            return None
    return None


def choose_source(task: Task, split: str) -> Source:
    """The first source of the split that is in reach; what it holds is fetched, and what was guessed is said.

    Raises SourceUnreachable, a UserError, with the reason of each source.
    """
    reasons = []
    for source in sources_of(task, split):
        try:
            for raw_split in raw_splits(source, split):
                make_ready(task, source, raw_split)
            return _said(task, split, source)
        except SourceUnreachable as error:
            reasons.append(str(error))
    if task.benchmark and not reasons:
        raise _only_a_test(task, split)
    raise _out_of_reach(task, split, reasons)


def _said(task: Task, split: str, source: Source) -> Source:
    if source.note:
        warn_once(f"{task.name}: {source.note}")
    used = {name for each in [source, *task.sources] for name in each.files.values()}
    if task.layout:
        return source
    if ignored := [name for name in _files_beside(task, split) if name not in used]:
        read = ", ".join(source.files[raw] for raw in raw_splits(source, split))
        warn_once(f"{task.name}, {split}: {', '.join(ignored)} beside the task file is not read, but {read}")
    return source


def _only_a_test(task: Task, split: str) -> SourceUnreachable:
    others = [name for name in task_names() if not load_task(name).benchmark]
    return SourceUnreachable(
        f"{task.name} is a benchmark with a test split alone and has no '{split}': it can be evaluated "
        f"(inference.py, --split test) but not trained on; to train, choose from {', '.join(others)}"
    )


def _out_of_reach(task: Task, split: str, reasons: list[str]) -> UserError:
    why = "; ".join(reasons) or f"no source offers this split, {_NAMES_SPLITS}"
    endings = f"{split}{LOCAL_ENDINGS[0]} (or {', '.join(LOCAL_ENDINGS[1:])})"
    remedy = f"{endings} with the fields {', '.join(task.fields)} in '{task.folder}'"
    return SourceUnreachable(f"{task.name}, {split}: {why}; your own file serves too: {remedy}")


def _named(task: Task) -> list[Source]:
    """The task's sources; a single one of a single file is split up, unless other splits lie beside it."""
    beside = [] if task.layout else [split for split in SPLITS if _files_beside(task, split)]
    if len(task.sources) == 1 and not {*beside} - {*task.sources[0].files}:
        return [_split_up(task, task.sources[0])]
    return [*task.sources]


def _beside(task: Task, split: str) -> list[Source]:
    """The file beside the task file that is called after the split; if there is no other, after `train`."""
    names = {found: files[0] for found in SPLITS if (files := _files_beside(task, found))}
    if not task.sources and [*names] == ["train"]:
        return [_split_up(task, Source(kind="file", files=names))]
    if split not in names:
        return []
    why = "nothing that it names is in reach" if task.sources else "it names no source"
    note = f"{split} is read from {names[split]} beside the task file, as {why}"
    return [Source(kind="file", files={split: names[split]}, note=note)]


def _files_beside(task: Task, split: str) -> list[str]:
    names = (f"{split}{ending}" for ending in LOCAL_ENDINGS)
    return [name for name in names if (task.folder / name).exists()]


def _split_up(task: Task, source: Source) -> Source:
    """A source of a single file cut into train, validation and test; any other as it is."""
    name, *others = source.files
    held_out = task.benchmark or name in ("validation", "test")
    if source.kind != "file" or others or source.splits or held_out:
        return source
    seed = SHUFFLE_SEED if source.shuffle_seed is None else source.shuffle_seed
    note = (
        f"no split is named, so {source.files[name]} is shuffled (seed {seed}) and cut into 80 % train, 10 % "
        "validation, 10 % test"
    )
    splits = {split: name + share for split, share in SHARES.items()}
    return replace(
        source, splits=splits, shuffle_seed=seed, note=f"{source.note}; {note}" if source.note else note
    )


def _offers(source: Source, split: str) -> bool:
    return all(name in source.files for name in raw_splits(source, split))
