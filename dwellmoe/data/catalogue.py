"""Knows which data sets there are, where each can come from and what is here already; prints nothing."""

from collections.abc import Iterator
from dataclasses import dataclass

from dwellmoe.data.download import SourceUnreachable
from dwellmoe.data.examples import choose_source, sources_of
from dwellmoe.data.records import is_ready
from dwellmoe.data.splits import raw_names
from dwellmoe.data.task import SPLITS, Source, Task, load_task, task_names

HERE, OFFERED, NOWHERE = "here", "offered", "-"


@dataclass(frozen=True)
class Entry:
    """A data set at a glance; a split is here (needs no network any more), offered by some source, or
    nowhere.
    """

    name: str
    licence: str
    places: list[str]
    splits: dict[str, str]


@dataclass(frozen=True)
class Arrival:
    """What became of fetching one split: `told` is the place it came from, or why it did not come."""

    name: str
    split: str
    came: bool
    told: str


def entries() -> list[Entry]:
    """All data sets of the project, by name; asks no network."""
    return [_entry(load_task(name)) for name in task_names()]


def fetch(task: Task) -> Iterator[Arrival]:
    """Makes every split ready that can be had; of a mix those of its members, of a benchmark its test."""
    for member in task.mix:
        yield from fetch(load_task(member))
    splits = ("test",) if task.benchmark else SPLITS
    for split in () if task.mix else splits:
        try:
            yield Arrival(task.name, split, True, place(choose_source(task, split)))
        except SourceUnreachable as error:
            yield Arrival(task.name, split, False, str(error))


def place(source: Source) -> str:
    """A source in a few words."""
    return {
        "package": f"package {source.package}",
        "hub": f"hub {source.hub_path}",
        "file": f"file {', '.join(source.files.values())}",
    }[source.kind]


def _entry(task: Task) -> Entry:
    if task.mix:
        members = [_entry(load_task(name)).splits for name in task.mix]
        splits = {split: _of_all([member[split] for member in members]) for split in SPLITS}
        return Entry(task.name, task.licence, [f"mix of {', '.join(task.mix)}"], splits)
    sources = {split: sources_of(task, split) for split in SPLITS}
    places = dict.fromkeys(place(source) for offering in sources.values() for source in offering)
    return Entry(task.name, task.licence, list(places), {split: _state(task, split) for split in SPLITS})


def _state(task: Task, split: str) -> str:
    sources = sources_of(task, split)
    if any(_is_ready(task, source, split) for source in sources):
        return HERE
    return OFFERED if sources else NOWHERE


def _of_all(states: list[str]) -> str:
    return next(state for state in (NOWHERE, OFFERED, HERE) if state in states)


def _is_ready(task: Task, source: Source, split: str) -> bool:
    return all(is_ready(task, source, raw) for raw in raw_names(source.splits.get(split, split)))
