"""What the server counts, for Prometheus."""

from collections.abc import Iterator
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

from dwellmoe.offload import Engine
from dwellmoe.serving.figures import AnswerLog
from dwellmoe.serving.generation_queue import GenerationQueue

FIRST_TOKEN_BUCKETS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)
TOKEN_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)
"""Upper bounds, in seconds."""
PHASES = ("prefill", "decode")
OF_PHASE = {
    "device_hits": "Experts that were on the device when a layer requested them",
    "ram_hits": "Experts that were in RAM when a layer requested them",
    "disk_loads": "Experts that were read when a layer requested them",
    "disk_bytes": "Bytes of the experts that were read",
    "stall_seconds": "Seconds for which the computation waited for experts",
}
"""Count of the engine in each phase -> what it says."""


class Metrics:
    """Counts of one server, in a registry of its own."""

    def __init__(self, queue: GenerationQueue, engine: Engine | None) -> None:
        self.registry = CollectorRegistry()
        self.registry.register(_Gauges(queue, engine))
        given: dict[str, Any] = {"registry": self.registry}
        self.requests = Counter(
            "dwellmoe_requests", "Answered and refused requests", ("path", "status"), **given
        )
        self.prompt_tokens = Counter("dwellmoe_prompt_tokens", "Tokens of prompts", ("model",), **given)
        self.tokens = Counter("dwellmoe_generated_tokens", "Tokens of answers", ("model",), **given)
        self.first_token = Histogram(
            "dwellmoe_time_to_first_token_seconds",
            "Seconds from a request to the first token of its answer, waiting included",
            buckets=FIRST_TOKEN_BUCKETS,
            **given,
        )
        self.token = Histogram(
            "dwellmoe_time_per_output_token_seconds",
            "Seconds from each token of an answer to the next",
            buckets=TOKEN_BUCKETS,
            **given,
        )

    def count_token(self, log: AnswerLog) -> None:
        """The last token of an answer."""
        if len(log.seconds) == 1:
            self.prompt_tokens.labels(log.model).inc(log.prompt_tokens)
            self.first_token.observe(log.seconds[0])
        else:
            self.token.observe(log.seconds[-1] - log.seconds[-2])
        self.tokens.labels(log.model).inc()


class _Gauges(Collector):
    """What queue and engine know at the moment they are asked."""

    def __init__(self, queue: GenerationQueue, engine: Engine | None) -> None:
        self._queue, self._engine = queue, engine

    def collect(self) -> Iterator[Any]:
        yield GaugeMetricFamily("dwellmoe_requests_running", "Requests that run", self._queue.running)
        yield GaugeMetricFamily("dwellmoe_requests_waiting", "Requests that wait", self._queue.waiting)
        if self._engine:
            yield from _of_engine(self._engine)


def _of_engine(engine: Engine) -> Iterator[Any]:
    capacity = engine.budget.capacity
    yield GaugeMetricFamily("dwellmoe_expert_slots", "Slots of a layer in the decode cache", capacity)
    for name, about in OF_PHASE.items():
        family = CounterMetricFamily(f"dwellmoe_expert_{name}", about, labels=["phase"])
        for phase in PHASES:
            family.add_metric([phase], getattr(getattr(engine.statistics, phase), name))
        yield family
