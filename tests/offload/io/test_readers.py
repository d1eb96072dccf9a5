"""Reader threads: the order of requests, what reading ahead leaves to urgent loads, cancelling."""

import threading
from queue import SimpleQueue
from typing import Any

import numpy as np
import pytest

from dwellmoe.cache.flat_id import FlatId
from dwellmoe.offload.io.readers import AHEAD_REQUEST_BYTES, Load, Readers
from dwellmoe.offload.io.storage import REQUEST_BYTES, Span

SECONDS = 30
LARGE = 3 * REQUEST_BYTES


class HeldStorage:
    """Fills nothing; each request waits until it is let through, in any order."""

    def __init__(self) -> None:
        self.begun: SimpleQueue[Span] = SimpleQueue()
        self._through = threading.Semaphore(0)

    def fill(self, span: Span) -> None:
        self.begun.put(span)
        assert self._through.acquire(timeout=SECONDS)

    def let_through(self, requests: int = 1000) -> None:
        self._through.release(requests)

    def next(self) -> Span:
        return self.begun.get(timeout=SECONDS)


@pytest.fixture
def storage():
    return HeldStorage()


@pytest.fixture
def readers_of(storage):
    """A factory of readers over `storage`, which are closed at the end."""
    made: list[Readers] = []

    def make(threads: int, **options: Any) -> Readers:
        made.append(Readers(storage, threads, **options))
        return made[-1]

    yield make
    storage.let_through()
    for readers in made:
        readers.close()


def load_of(number: int, nbytes: int, arrivals: SimpleQueue | None = None) -> Load:
    memory = np.zeros(0, np.uint8)
    return Load(FlatId(number), [Span(number, 0, nbytes, memory, 0)], arrivals or SimpleQueue())


def is_idle(storage: HeldStorage) -> bool:
    """Whether no reader begins a request for a while."""
    threading.Event().wait(0.05)
    return storage.begun.empty()


@pytest.mark.parametrize("threads", [2, 4])
def test_reading_ahead_leaves_a_reader_free_for_an_urgent_load(threads, storage, readers_of):
    readers = readers_of(threads)
    readers.submit([load_of(0, LARGE)], urgent=False)
    assert all(storage.next().nbytes <= AHEAD_REQUEST_BYTES for _ in range(threads - 1))
    assert is_idle(storage)
    readers.submit([load_of(1, 10)])
    assert storage.next().shard == 1


def test_a_single_reader_reads_ahead_and_turns_to_an_urgent_load_after_one_request(storage, readers_of):
    readers = readers_of(1)
    readers.submit([load_of(0, LARGE)], urgent=False)
    assert storage.next().shard == 0
    readers.submit([load_of(1, LARGE), load_of(2, 10)])
    storage.let_through(5)
    assert [storage.next().shard for _ in range(5)] == [1, 1, 1, 2, 0]


def test_a_load_that_is_read_ahead_becomes_urgent(storage, readers_of):
    readers, arrivals = readers_of(2), SimpleQueue()
    ahead = [load_of(number, 2 * AHEAD_REQUEST_BYTES, arrivals) for number in range(2)]
    readers.submit(ahead, urgent=False)
    assert storage.next().shard == 0
    readers.submit([ahead[1]])
    assert storage.next().shard == 1
    storage.let_through()
    assert [storage.next().shard for _ in range(2)] == [1, 0]
    assert {arrivals.get(timeout=SECONDS) for _ in ahead} == set(ahead)
    assert arrivals.empty()


def test_a_cancelled_load_arrives_once_when_its_running_requests_are_done(storage, readers_of):
    readers, arrivals = readers_of(2), SimpleQueue()
    begun, waiting = load_of(0, LARGE, arrivals), load_of(1, 10, arrivals)
    readers.submit([begun, waiting], urgent=False)
    assert storage.next().shard == 0
    readers.cancel([begun, waiting], wait=False)
    assert arrivals.get(timeout=SECONDS) is waiting and not begun.arrived.is_set()
    assert (begun.begun, waiting.begun) == (True, False)
    storage.let_through()
    assert arrivals.get(timeout=SECONDS) is begun
    assert is_idle(storage) and arrivals.empty()


def test_requests_cover_a_load_once(storage, readers_of):
    memory = np.zeros(LARGE, np.uint8)
    spans = [Span(0, 5, LARGE - 100, memory, 7), Span(1, AHEAD_REQUEST_BYTES - 1, 2, memory, 0)]
    for urgent, most in ((True, REQUEST_BYTES), (False, AHEAD_REQUEST_BYTES)):
        arrivals = SimpleQueue()
        storage.let_through()
        readers_of(1).submit([Load(FlatId(0), spans, arrivals)], urgent)
        arrivals.get(timeout=SECONDS)
        found = [storage.next() for _ in range(storage.begun.qsize())]
        assert all(request.nbytes <= most for request in found)
        for span in spans:
            parts = [request for request in found if request.shard == span.shard]
            ends = [(part.offset + part.nbytes, part.begin + part.nbytes) for part in parts]
            assert [(part.offset, part.begin) for part in parts] == [(span.offset, span.begin), *ends[:-1]]
            assert ends[-1] == (span.offset + span.nbytes, span.begin + span.nbytes)


def test_the_error_of_a_request_ends_its_load(readers_of, storage, monkeypatch):
    def fail(span: Span) -> None:
        raise OSError("gone")

    monkeypatch.setattr(storage, "fill", fail)
    arrivals = SimpleQueue()
    readers_of(2).submit([load_of(0, LARGE, arrivals)])
    assert isinstance(arrivals.get(timeout=SECONDS).error, OSError)
