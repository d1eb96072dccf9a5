"""Live figures of a server: what its cache holds, what it has counted, and what its last answer took.

Letters: L MoE layers, E routed experts a layer.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from threading import Lock
from time import perf_counter
from typing import Any

from dwellmoe.offload import Engine


class Figures:
    """The figures of one server."""

    def __init__(self, engine: Engine | None, on_token: "Callable[[AnswerLog], object]") -> None:
        self.engine, self.on_token = engine, on_token
        self.last: AnswerLog | None = None
        """The answer that is being written, or was written last."""
        self.answers = 0
        """How many were begun so far."""
        self.changing = Lock()
        """Held while the engine's caches are replaced, or looked at."""

    def fields(self) -> dict[str, Any]:
        """Of the cache, and of the last answer."""
        return {"expert_cache": self.of_cache(cache_fields), "last_answer": self.last and self.last.fields()}

    def of_cache(self, fields: Callable[[Engine], dict[str, Any]]) -> dict[str, Any] | None:
        """`fields` of the engine; None for a model in memory, and while its budget is being changed."""
        if not self.engine or not self.changing.acquire(blocking=False):
            return None
        try:
            return fields(self.engine)
        finally:
            self.changing.release()


@dataclass
class AnswerLog:
    """One answer, token by token, as it is written; `on_token` of its figures is called with each."""

    model: str
    figures: Figures
    requested_at: float
    """By `perf_counter`, as all times here."""
    tokens: list[str] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    """From the request to each token."""
    fetched: list[int] = field(default_factory=list)
    """Experts read from RAM or disk for each token; for the first one those of the prompt."""
    prompt_tokens: int = 0
    number: int = 0
    """Of the answers of its server, from 1."""
    _fetched_before: int = 0

    def begin(self, prompt_tokens: int) -> None:
        """The generation begins now."""
        self.prompt_tokens = prompt_tokens
        self.figures.answers += 1
        self.number = self.figures.answers
        self.figures.last = self
        self._fetched_before = fetched_experts(self.figures.engine)

    def add(self, piece: str) -> None:
        """A token was written; `piece` is its text, empty for one that ends in the middle of a character."""
        seconds, fetched = perf_counter() - self.requested_at, fetched_experts(self.figures.engine)
        self.tokens.append(piece)
        self.seconds.append(seconds)
        self.fetched.append(fetched - self._fetched_before)
        self._fetched_before = fetched
        self.figures.on_token(self)

    def fields(self) -> dict[str, Any]:
        """Plain lists, of one length while the answer is being written, too."""
        count = len(self.fetched)  # the last one that `add` writes
        return {
            "model": self.model,
            "prompt_tokens": self.prompt_tokens,
            "tokens": self.tokens[:count],
            "seconds": [round(seconds, 6) for seconds in self.seconds[:count]],
            "fetched": self.fetched[:count],
        }


def fetched_experts(engine: Engine | None) -> int:
    """Experts that the engine has brought from RAM or disk so far."""
    if engine is None:
        return 0
    counts = engine.statistics.prefill, engine.statistics.decode
    return sum(each.ram_hits + each.disk_loads for each in counts)


def cache_fields(engine: Engine) -> dict[str, Any]:
    """The engine's cache: its size, its counts, and the experts [L][E] in each tier (device, RAM)."""
    return {
        **engine.budget.fields(),
        "expert_budget": engine.settings.expert_budget,
        "layers": len(engine.layers),
        "experts": engine.layers[0].num_experts,
        "chosen": engine.layers[0].top_k,
        "expert_bytes": list(engine.record_bytes),
        "expert_memory_bytes": engine.memory.total_bytes,
        "on_device": [engine.on_device(layer.index).astype(int).tolist() for layer in engine.layers],
        "in_ram": [engine.in_ram(layer.index).astype(int).tolist() for layer in engine.layers],
        "prefill": engine.statistics.prefill.fields(),
        "decode": engine.statistics.decode.fields(),
    }
