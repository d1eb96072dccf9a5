"""One generation at a time, a bounded number waiting, and no place that is lost."""

import threading
import time

import pytest

from dwellmoe.serving.errors import GenerationFailed, RequestError
from dwellmoe.serving.generation_queue import LEFT, STOPPING, GenerationQueue


@pytest.fixture
def queue():
    found = GenerationQueue(most_waiting=1)
    yield found
    found.end()


def wait_until(condition) -> None:
    for _ in range(500):
        if condition():
            return
        time.sleep(0.01)
    raise AssertionError("it did not happen within 5 s")


class Job:
    """Work that runs until it is released or given up."""

    def __init__(self, queue: GenerationQueue) -> None:
        self.release, self.ended, self.reasons = threading.Event(), [], []
        self.places_at_the_end = []
        self._block = queue.place()
        self.place = self._block.__enter__()

    def begin(self) -> "Job":
        self.place.submit(self._work, self.reasons.append)
        return self

    def leave(self) -> None:
        self._block.__exit__(None, None, None)

    def _work(self):
        try:
            while not self.release.wait(0.005):
                self.place.check()
            self.ended.append("whole")
        except GenerationFailed as error:
            self.ended.append(error.message)
        return lambda: self.places_at_the_end.append(self.place in self.place._queue.places)


def test_one_runs_one_waits_and_a_third_is_refused(queue):
    running, waiting = Job(queue).begin(), Job(queue).begin()
    wait_until(lambda: (queue.running, queue.waiting) == (1, 1))
    with pytest.raises(RequestError) as refused, queue.place():
        pass
    assert (refused.value.status, refused.value.code) == (429, "queue_full")
    for job in (running, waiting):
        job.release.set()
        wait_until(lambda: job.ended == ["whole"])  # noqa: B023
    wait_until(lambda: not queue.places)
    wait_until(lambda: running.places_at_the_end == waiting.places_at_the_end == [False])


def test_a_client_that_leaves_ends_its_running_work_and_frees_its_place(queue):
    job = Job(queue).begin()
    wait_until(lambda: queue.running)
    job.leave()
    wait_until(lambda: not queue.places)
    assert job.ended == [LEFT]


def test_a_waiting_place_is_free_at_once(queue):
    running, waiting = Job(queue).begin(), Job(queue).begin()
    waiting.leave()
    assert len(queue.places) == 1 and waiting.reasons == [LEFT]
    running.release.set()
    wait_until(lambda: running.ended)
    assert not waiting.ended


def test_a_place_without_work_is_free_at_the_end_of_its_block(queue):
    with queue.place():
        assert queue.waiting == 1
    assert not queue.places


def test_a_stop_lets_the_running_one_end_and_refuses_the_others(queue):
    running, waiting = Job(queue).begin(), Job(queue).begin()
    wait_until(lambda: queue.running)
    queue.close()
    assert waiting.reasons == [STOPPING] and not running.ended
    with pytest.raises(RequestError) as refused, queue.place():
        pass
    assert refused.value.status == 503
    queue.cut()
    wait_until(lambda: running.ended == [STOPPING])


def test_work_that_comes_after_it_was_given_up_does_not_run(queue):
    job = Job(queue)
    queue.close()
    job.begin()
    assert job.reasons == [STOPPING] and not queue.places
