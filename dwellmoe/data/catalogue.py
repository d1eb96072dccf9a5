"""Which data sets there are, where each can come from, and what of them is here already."""

from collections.abc import Iterator
from dataclasses import dataclass

from dwellmoe.data.download import SourceUnreachable
from dwellmoe.data.sources import choose_source, is_here, sources_of
from dwellmoe.data.task import SPLITS, Source, Task, load_task, task_names

HERE, OFFERED, NOWHERE = "here", "offered", "-"


@dataclass(frozen=True)
class Entry:
    """A data set at a glance: the sources in a few words each, and how each split can be had.

    A split is `HERE` (it needs no network any more), `OFFERED` by some source, or `NOWHERE`.
    """

    name: str
    licence: str
    sources: list[str]
    splits: dict[str, str]


@dataclass(frozen=True)
class FetchResult:
    """The outcome of fetching one split: the source it is read from, or why it could not be fetched."""

    name: str
    split: str
    source: str = ""
    failure: str = ""


def entries() -> list[Entry]:
    """All data sets of the project, by name; no network is used."""
    return [_entry(load_task(name)) for name in task_names()]


def fetch(task: Task) -> Iterator[FetchResult]:
    """Fetches every split that is in reach: of a mix those of its members, of a benchmark its test."""
    for member in task.mix:
        yield from fetch(load_task(member))
    splits = ("test",) if task.benchmark else SPLITS
    for split in () if task.mix else splits:
        try:
            yield FetchResult(task.name, split, source=label(choose_source(task, split)))
        except SourceUnreachable as error:
            yield FetchResult(task.name, split, failure=str(error))


def label(source: Source) -> str:
    """A source in a few words."""
    return {
        "package": f"package {source.package}",
        "hub": f"hub {source.hub_path}",
        "file": f"file {', '.join(source.files.values())}",
    }[source.kind]


def _entry(task: Task) -> Entry:
    if task.mix:
        members = [_entry(load_task(name)).splits for name in task.mix]
        splits = {split: _worst([member[split] for member in members]) for split in SPLITS}
        return Entry(task.name, task.licence, [f"mix of {', '.join(task.mix)}"], splits)
    sources = [source for split in SPLITS for source in sources_of(task, split)]
    labels = list(dict.fromkeys(map(label, sources)))
    return Entry(task.name, task.licence, labels, {split: _state(task, split) for split in SPLITS})


def _state(task: Task, split: str) -> str:
    sources = sources_of(task, split)
    if any(is_here(task, source, split) for source in sources):
        return HERE
    return OFFERED if sources else NOWHERE


def _worst(states: list[str]) -> str:
    return next(state for state in (NOWHERE, OFFERED, HERE) if state in states)
