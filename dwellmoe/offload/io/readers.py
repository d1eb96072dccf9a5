"""Reader threads: fill memory from storage, urgent loads first; loads can be cancelled."""

import threading
from collections import deque
from collections.abc import Callable, Sequence
from queue import SimpleQueue

from dwellmoe.cache.flat_id import FlatId
from dwellmoe.offload.io.storage import REQUEST_BYTES, Span, Storage


class Load:
    """One record that is being read. It arrives once: complete, failed or cancelled.

    flat_id   of the expert
    spans     what readers fill
    arrivals  where the load is put when it arrives
    check     called by the last reader of the record; what it raises is the load's error
    """

    def __init__(
        self,
        flat_id: FlatId,
        spans: Sequence[Span],
        arrivals: "SimpleQueue[Load]",
        check: Callable[[], None] | None = None,
    ) -> None:
        self.flat_id = flat_id
        self.nbytes = sum(span.nbytes for span in spans)
        self.error: BaseException | None = None
        self.cancelled = False
        self.requests = [part for span in spans for part in _requests(span)]
        self.arrivals, self.check = arrivals, check
        self.arrived = threading.Event()
        self.running, self.done, self.filled = 0, 0, 0
        """Requests that readers have begun and not finished, finished, and read without an error."""


def _requests(span: Span) -> list[Span]:
    """A span cut so that several readers share it, at multiples of REQUEST_BYTES in the file."""
    cuts: list[Span] = []
    begin = 0
    while begin < span.nbytes:
        end = begin + REQUEST_BYTES - (span.offset + begin) % REQUEST_BYTES
        size = min(end, span.nbytes) - begin
        cuts.append(span._replace(offset=span.offset + begin, nbytes=size, begin=span.begin + begin))
        begin += size
    return cuts


class Readers:
    """A pool of reader threads over one storage. Urgent loads come first, in order; prefetches are read while
    no urgent load waits.
    """

    def __init__(self, storage: Storage, threads: int) -> None:
        self.storage = storage
        self._urgent: deque[tuple[Load, Span]] = deque()
        self._prefetch: deque[tuple[Load, Span]] = deque()
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
            queue = self._urgent if urgent else self._prefetch
            queue.extend([(load, request) for load in loads for request in load.requests])
            self._change.notify(len(self._threads))

    def hurry(self, load: Load) -> None:
        """Makes a prefetch urgent."""
        with self._change:
            entries = [entry for entry in self._prefetch if entry[0] is load]
            if entries:
                self._prefetch = deque(entry for entry in self._prefetch if entry[0] is not load)
                self._urgent.extend(entries)
                self._change.notify(len(entries))

    def cancel(self, loads: Sequence[Load], wait: bool = True) -> None:
        """Cancels loads; with `wait`, returns when all of them arrived. No reader writes to the memory of a
        load that arrived.
        """
        with self._change:
            for load in loads:
                load.cancelled = True
        for load in loads:
            self._remove(load)
        for load in loads if wait else ():
            load.arrived.wait()

    def _remove(self, load: Load) -> None:
        """Removes the requests that no reader has begun from the queues."""
        with self._change:
            self._urgent = deque(entry for entry in self._urgent if entry[0] is not load)
            self._prefetch = deque(entry for entry in self._prefetch if entry[0] is not load)
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
                    self._check(load)
            except BaseException as error:  # raised where the load is waited for
                load.error = error
            with self._change:
                load.running -= 1
                load.done += 1
                if load.done == len(load.requests) or (load.cancelled and not load.running):
                    self._arrive(load)

    def _check(self, load: Load) -> None:
        """Checks a record of which a request was read, if it was the last."""
        with self._change:
            load.filled += 1
            is_whole = load.filled == len(load.requests)
        if is_whole and load.check:
            load.check()

    def _arrive(self, load: Load) -> None:
        if not load.arrived.is_set():
            load.arrived.set()
            load.arrivals.put(load)

    def _next(self) -> tuple[Load, Span] | None:
        with self._change:
            while not self._urgent and not self._prefetch:
                if self._closed:
                    return None
                self._change.wait()
            if self._closed:
                return None
            entry = self._urgent.popleft() if self._urgent else self._prefetch.popleft()
            entry[0].running += 1
            return entry
