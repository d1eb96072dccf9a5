"""Knows how to fill memory from storage in several threads, urgent work first, and how to call it off; does
not know why something is wanted.
"""

import threading
from collections import deque
from collections.abc import Sequence
from queue import SimpleQueue

from dwellmoe.offload.io.storage import REQUEST_BYTES, Span, Storage


class Load:
    """One record under way: some spans that readers fill; arrives once, whole, failed or called off."""

    def __init__(self, number: int, spans: Sequence[Span], arrivals: "SimpleQueue[Load]") -> None:
        self.number = number
        self.nbytes = sum(span.nbytes for span in spans)
        self.error: BaseException | None = None
        self.cancelled = False
        self.requests = [part for span in spans for part in _requests(span)]
        self.arrivals = arrivals
        self.arrived = threading.Event()
        self.running, self.done = 0, 0
        """Requests that readers are at, and have finished."""


def _requests(span: Span) -> list[Span]:
    """A span cut so that several readers share it; inner borders lie where pages of the file do."""
    cuts, at = [], 0
    while at < span.nbytes:
        end = at + REQUEST_BYTES - (span.offset + at) % REQUEST_BYTES
        size = min(end, span.nbytes) - at
        cuts.append(span._replace(offset=span.offset + at, nbytes=size, at=span.at + at))
        at += size
    return cuts


class Readers:
    """A pool of reader threads over one storage. Requests of urgent loads come first, in order; those of
    loads read ahead when nothing urgent waits.
    """

    def __init__(self, storage: Storage, threads: int) -> None:
        self.storage = storage
        self._urgent: deque[tuple[Load, Span]] = deque()
        self._ahead: deque[tuple[Load, Span]] = deque()
        self._change = threading.Condition()
        self._closed = False
        self._threads = [
            threading.Thread(target=self._work, name=f"expert-reader-{n}", daemon=True)
            for n in range(threads)
        ]
        for thread in self._threads:
            thread.start()

    def submit(self, loads: Sequence[Load], urgent: bool = True) -> None:
        """Starts reading; each load is put into its `arrivals` when it is done."""
        with self._change:
            queue = self._urgent if urgent else self._ahead
            queue.extend([(load, request) for load in loads for request in load.requests])
            self._change.notify(len(self._threads))

    def hurry(self, load: Load) -> None:
        """What was read ahead is needed now."""
        with self._change:
            mine = [entry for entry in self._ahead if entry[0] is load]
            if mine:
                self._ahead = deque(entry for entry in self._ahead if entry[0] is not load)
                self._urgent.extend(mine)
                self._change.notify(len(mine))

    def cancel(self, loads: Sequence[Load], wait: bool = True) -> None:
        """Calls loads off. No reader touches the memory of one that arrived; `wait` until all have."""
        with self._change:
            for load in loads:
                load.cancelled = True
        for load in loads:
            self._drop(load)
        for load in loads if wait else ():
            load.arrived.wait()

    def _drop(self, load: Load) -> None:
        """Takes requests that no reader has begun out of the queues."""
        with self._change:
            self._urgent = deque(entry for entry in self._urgent if entry[0] is not load)
            self._ahead = deque(entry for entry in self._ahead if entry[0] is not load)
            if not load.running:
                self._arrive(load)

    def close(self) -> None:
        with self._change:
            self._closed = True
            self._change.notify_all()
        for thread in self._threads:
            thread.join()

    def _work(self) -> None:
        while (entry := self._next()) is not None:
            load, request = entry
            try:
                if load.error is None and not load.cancelled:
                    self.storage.fill(request)
            except BaseException as error:  # handed to whoever waits for the load
                load.error = error
            with self._change:
                load.running -= 1
                load.done += 1
                if load.done == len(load.requests) or (load.cancelled and not load.running):
                    self._arrive(load)

    def _arrive(self, load: Load) -> None:
        if not load.arrived.is_set():
            load.arrived.set()
            load.arrivals.put(load)

    def _next(self) -> tuple[Load, Span] | None:
        with self._change:
            while not self._urgent and not self._ahead:
                if self._closed:
                    return None
                self._change.wait()
            if self._closed:
                return None
            entry = self._urgent.popleft() if self._urgent else self._ahead.popleft()
            entry[0].running += 1
            return entry
