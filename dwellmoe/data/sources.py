"""Which source a split of a data set is read from."""

from dwellmoe.data.download import SourceUnreachable
from dwellmoe.data.records import is_ready, make_ready
from dwellmoe.data.splits import raw_names
from dwellmoe.data.task import Source, Task, load_task, task_names
from dwellmoe.errors import UserError
from dwellmoe.log import warn_once

LOCAL_ENDINGS = (".jsonl", ".json", ".csv", ".parquet")


def sources_of(task: Task, split: str) -> list[Source]:
    """Every source that has the split, in the order of choice, in reach or not.

    Files named after the split beside the task file (`train.jsonl`, ...) come before every other source.
    """
    return [source for source in [*_beside(task, split), *task.sources] if _offers(source, split)]


def raw_splits(source: Source, split: str) -> list[str]:
    """The source's own splits that a split is made of."""
    return raw_names(source.splits.get(split, split))


def is_here(task: Task, source: Source, split: str) -> bool:
    """Whether the source's part of a split can be read without any network."""
    return all(is_ready(task, source, raw_split) for raw_split in raw_splits(source, split))


def ready_source(task: Task, split: str) -> Source | None:
    """The first source of the split that is here; its note is printed."""
    found = next((source for source in sources_of(task, split) if is_here(task, source, split)), None)
    return _noted(task, found) if found else None


def choose_source(task: Task, split: str) -> Source:
    """The first source of the split that is in reach; what it holds is fetched, its note is printed.

    Raises SourceUnreachable, a UserError, with the reason of each source.
    """
    reasons = []
    for source in sources_of(task, split):
        try:
            for raw_split in raw_splits(source, split):
                make_ready(task, source, raw_split)
            return _noted(task, source)
        except SourceUnreachable as error:
            reasons.append(str(error))
    if task.benchmark and not reasons:
        raise _only_a_test(task, split)
    raise _out_of_reach(task, split, reasons)


def _noted(task: Task, source: Source) -> Source:
    if source.note:
        warn_once(f"{task.name}: {source.note}")
    return source


def _only_a_test(task: Task, split: str) -> SourceUnreachable:
    others = [name for name in task_names() if not load_task(name).benchmark]
    return SourceUnreachable(
        f"{task.name} is a benchmark with a test split alone and has no '{split}': it can be evaluated "
        f"(inference.py, --split test) but not trained on; to train, choose from {', '.join(others)}"
    )


def _out_of_reach(task: Task, split: str, reasons: list[str]) -> UserError:
    why = "; ".join(reasons) or "no source offers this split"
    endings = f"{split}{LOCAL_ENDINGS[0]} (or {', '.join(LOCAL_ENDINGS[1:])})"
    remedy = f"{endings} with the fields {', '.join(task.fields)} in '{task.folder}'"
    return SourceUnreachable(f"{task.name}, {split}: {why}; your own file serves too: {remedy}")


def _beside(task: Task, split: str) -> list[Source]:
    names = [f"{split}{ending}" for ending in LOCAL_ENDINGS if (task.folder / f"{split}{ending}").exists()]
    return [Source(kind="file", files={split: name}) for name in names[:1]]


def _offers(source: Source, split: str) -> bool:
    return all(name in source.files for name in raw_splits(source, split))
