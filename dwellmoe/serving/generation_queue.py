"""One generation at a time, on one thread, with a bounded number of requests waiting for it."""

from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from time import perf_counter

from dwellmoe.serving.errors import GenerationFailed, RequestError

LEFT = "the client has left"
STOPPING = "the server is stopping"


class Place:
    """A request's place in the queue, from when it is let in until its generation has ended.

    A place that is given up before its work began is free at once; while the work runs, it is free when the
    work has noticed, by calling `check`.
    """

    def __init__(self, queue: "GenerationQueue") -> None:
        self.since = perf_counter()
        """When the request came."""
        self.running = False
        self.given_up: str | None = None
        """Why the answer is not wanted any more."""
        self._queue = queue
        self._job: Future | None = None
        self._when_given_up: Callable[[str], None] = lambda reason: None

    def submit(self, work: Callable[[], Callable[[], None]], when_given_up: Callable[[str], None]) -> None:
        """Runs `work` when it is its turn, and when the place is free, what that returns: the end is told to
        a client that may come back at once. If the place is given up before its turn, `when_given_up` is
        called instead, with the reason.
        """
        if self.given_up is not None:
            when_given_up(self.given_up)
            return
        self._when_given_up = when_given_up
        self._job = self._queue.worker.submit(self._run, work)

    def _run(self, work: Callable[[], Callable[[], None]]) -> None:
        self.running = True
        try:
            tell_end = work()
        finally:
            self._queue.places.discard(self)
        tell_end()

    def give_up(self, reason: str) -> None:
        """The answer is not wanted any more. No effect on work that has ended."""
        self.given_up = self.given_up or reason
        if self._job is None:
            self._queue.places.discard(self)
        elif self._job.cancel() and self in self._queue.places:
            self._queue.places.discard(self)
            self._when_given_up(reason)

    def check(self) -> None:
        """Called by the work, as often as it can: raises GenerationFailed if it was given up."""
        if self.given_up is not None:
            raise GenerationFailed(503, self.given_up)


class GenerationQueue:
    """Lets requests in, up to a number, and runs their work one after the other.

    `places` and the methods but `Place.check` are of the thread of the event loop; the worker only takes
    places out.
    """

    def __init__(self, most_waiting: int) -> None:
        self.worker = ThreadPoolExecutor(max_workers=1, thread_name_prefix="generation")
        self.places: set[Place] = set()
        self._most = most_waiting + 1
        self.closed = False

    @contextmanager
    def place(self) -> Iterator[Place]:
        """A place for a request, given up when the block ends. Raises RequestError where there is none."""
        if self.closed:
            raise RequestError(503, STOPPING, code="stopping")
        if len(self.places) >= self._most:
            message = f"{len(self.places)} requests run or wait already: try again later"
            raise RequestError(429, message, code="queue_full")
        found = Place(self)
        self.places.add(found)
        try:
            yield found
        finally:
            found.give_up(LEFT)

    @property
    def running(self) -> int:
        return sum(place.running for place in tuple(self.places))

    @property
    def waiting(self) -> int:
        return len(self.places) - self.running

    def close(self) -> None:
        """Lets no request in any more; those that wait get no answer, the running one goes on."""
        self.closed = True
        for place in tuple(self.places):
            if not place.running:
                place.give_up(STOPPING)

    def cut(self) -> None:
        """Ends the running generation, too."""
        for place in tuple(self.places):
            place.give_up(STOPPING)

    def end(self) -> None:
        """Returns when the worker has ended."""
        self.cut()
        self.worker.shutdown(wait=True, cancel_futures=True)
