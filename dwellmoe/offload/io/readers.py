"""Reader threads: fill memory from storage, urgent loads first; loads can be cancelled.

What is read ahead is read in small requests and leaves a reader free: it delays an urgent load little.
"""

import threading
from collections import deque
from collections.abc import Callable, Sequence
from queue import SimpleQueue
from typing import NamedTuple

from dwellmoe.cache.flat_id import FlatId
from dwellmoe.offload.io.storage import REQUEST_BYTES, Span, Storage

AHEAD_REQUEST_BYTES = 1 << 20
"""Most that a reader reads at a time of a load that is not urgent; measured in docs/dev/decisions.md."""


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
        self.spans = spans
        self.nbytes = sum(span.nbytes for span in spans)
        self.error: BaseException | None = None
        self.cancelled = False
        self.arrivals, self.check = arrivals, check
        self.arrived = threading.Event()
        self.waiting: deque[Span] = deque()
        """Requests that no reader has begun; empty before the load is submitted."""
        self.running, self.unread = 0, 0
        """Requests that readers have begun and not finished, and those not yet read without an error."""
        self.submitted = self.begun = False


class _Request(NamedTuple):
    """What a reader does next."""

    load: Load
    span: Span
    ahead: bool
    """Whether the load was not urgent when a reader began this."""


class Readers:
    """A pool of reader threads over one storage. Urgent loads come first, in order; others are read ahead
    while no urgent load waits.

    ahead_threads  readers that may read ahead at a time; None: all but one
    ahead_bytes    most that a reader reads ahead at a time
    """

    def __init__(
        self,
        storage: Storage,
        threads: int,
        ahead_threads: int | None = None,
        ahead_bytes: int = AHEAD_REQUEST_BYTES,
    ) -> None:
        self.storage = storage
        self.ahead_threads = max(1, threads - 1) if ahead_threads is None else ahead_threads
        self.ahead_bytes = ahead_bytes
        self._urgent: deque[Load] = deque()
        self._ahead: deque[Load] = deque()
        self._reading_ahead = 0
        self._change = threading.Condition()
        self._closed = False
        self._threads = [
            threading.Thread(target=self._work, name=f"expert-reader-{n}", daemon=True)
            for n in range(threads)
        ]
        for thread in self._threads:
            thread.start()

    def submit(self, loads: Sequence[Load], urgent: bool = True) -> None:
        """Starts reading; each load is put into its `arrivals` when it is done. An urgent load may be one
        that is being read ahead: the rest of it is urgent from now on.
        """
        with self._change:
            for load in loads:
                if not load.submitted:
                    load.submitted = True
                    load.waiting.extend(_requests(load.spans, REQUEST_BYTES if urgent else self.ahead_bytes))
                    load.unread = len(load.waiting)
            (self._urgent if urgent else self._ahead).extend(loads)
            self._change.notify(sum(len(load.waiting) for load in loads))

    def cancel(self, loads: Sequence[Load], wait: bool = True) -> None:
        """Cancels loads; with `wait`, returns when all of them arrived. No reader writes to the memory of a
        load that arrived.
        """
        with self._change:
            for load in loads:
                load.cancelled = True
                load.waiting.clear()
                self._arrive_if_done(load)
        for load in loads if wait else ():
            load.arrived.wait()

    def close(self) -> None:
        with self._change:
            self._closed = True
            self._change.notify_all()
        for thread in self._threads:
            thread.join()

    def _work(self) -> None:
        while (request := self._next()) is not None:
            load = request.load
            try:
                if load.error is None and not load.cancelled:
                    self.storage.fill(request.span)
                    self._check(load)
            except BaseException as error:  # raised where the load is waited for
                load.error = error
            with self._change:
                load.running -= 1
                self._reading_ahead -= request.ahead
                self._arrive_if_done(load)

    def _check(self, load: Load) -> None:
        """Checks a record of which a request was read, if it was the last."""
        with self._change:
            load.unread -= 1
            is_whole = not load.unread
        if is_whole and load.check:
            load.check()

    def _arrive_if_done(self, load: Load) -> None:
        if not load.running and not load.waiting and not load.arrived.is_set():
            load.arrived.set()
            load.arrivals.put(load)

    def _next(self) -> _Request | None:
        """The next request, when there is one; None when the readers are closed."""
        with self._change:
            while not self._closed:
                if (load := _first(self._urgent)) is not None:
                    return self._begin(load, ahead=False)
                if self._reading_ahead < self.ahead_threads and (load := _first(self._ahead)) is not None:
                    return self._begin(load, ahead=True)
                self._change.wait()
            return None

    def _begin(self, load: Load, ahead: bool) -> _Request:
        load.begun = True
        load.running += 1
        self._reading_ahead += ahead
        return _Request(load, load.waiting.popleft(), ahead)


def _first(queue: deque[Load]) -> Load | None:
    """The first load with a request that no reader has begun; those before it leave the queue."""
    while queue and not queue[0].waiting:
        queue.popleft()
    return queue[0] if queue else None


def _requests(spans: Sequence[Span], request_bytes: int) -> list[Span]:
    """Spans cut so that several readers share them, at multiples of `request_bytes` in the file."""
    cuts: list[Span] = []
    for span in spans:
        begin = 0
        while begin < span.nbytes:
            end = begin + request_bytes - (span.offset + begin) % request_bytes
            size = min(end, span.nbytes) - begin
            cuts.append(span._replace(offset=span.offset + begin, nbytes=size, begin=span.begin + begin))
            begin += size
    return cuts
