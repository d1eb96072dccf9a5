"""The figures of the live page: those of the server, and what the page has not seen of the last answer.

Nothing is counted for the page while no page asks. Letters: L MoE layers, E routed experts a layer, T tokens,
K chosen experts a token.
"""

import time
from collections import deque
from time import perf_counter
from typing import Any

import numpy as np

from dwellmoe.offload import Engine
from dwellmoe.serving.figures import AnswerLog, Figures
from dwellmoe.serving.served_model import ServedModel

MOST_TOKENS = 2000
"""Of an answer at once: a page that comes late does not get all of a long one."""
WATCHED_SECONDS = 5.0
"""After the last look at the counts they are not counted any more."""


class ExpertUse:
    """How often each expert was chosen for decoded tokens, counted only while somebody looks at it."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._looked_at = 0.0
        self._choices: deque = deque()
        """(layer, experts [T, K]) of requests that are not counted yet."""
        self._counts = np.zeros(len(engine.layers) * engine.layers[0].num_experts, np.int64)

    def counts(self) -> list[list[int]]:
        """[L][E], since somebody looked first. Counting goes on for a while."""
        self._looked_at = perf_counter()
        self._engine.cached_experts.on_decode = self._note
        experts = self._engine.layers[0].num_experts
        chosen = []
        while self._choices:
            layer, rows = self._choices.popleft()
            chosen += [layer * experts + each for row in rows for each in row if each < experts]
        self._counts += np.bincount(np.array(chosen, np.int64), minlength=len(self._counts))
        return self._counts.reshape(-1, experts).tolist()

    def _note(self, layer: int, experts: Any) -> None:
        """Called for each layer of each decoded token, on the thread of the generation."""
        self._choices.append((layer, experts))
        if perf_counter() - self._looked_at > WATCHED_SECONDS:
            self._engine.cached_experts.on_decode = None
            self._choices.clear()


class LiveFigures:
    """What the live page shows of one server."""

    def __init__(self, served: ServedModel, figures: Figures) -> None:
        self._figures, self._served = figures, served
        self._use = ExpertUse(served.engine) if served.engine else None
        self._started = time.time()
        first = served.evaluated.moe_layers[0]
        self._model = {
            "name": served.evaluated.name,
            "layers": len(served.evaluated.moe_layers),
            "experts": first.num_experts,
            "chosen": first.top_k,
        }

    def since(self, answer: int, tokens: int) -> dict[str, Any]:
        """All figures; of the last answer the tokens that come after so many, if it is that answer."""
        log = self._figures.last
        return {
            "started": self._started,
            "now": perf_counter(),
            "model": self._model,
            "models": list(self._served.variants),
            "has_cache": self._use is not None,
            "expert_cache": self._figures.of_cache(self._cache_fields),
            "last_answer": log and answer_fields(log, tokens if answer == log.number else 0),
        }

    def _cache_fields(self, engine: Engine) -> dict[str, Any]:
        assert self._use is not None
        on_device, in_ram = engine.memory_map()
        sizes, experts = engine.record_bytes, engine.layers[0].num_experts
        return {
            "expert_budget": engine.settings.expert_budget,
            "capacity": engine.budget.capacity,
            "layers": len(sizes),
            "experts": experts,
            "places": [_digits(row) for row in np.where(on_device, 2, in_ram)],
            "uses": self._use.counts(),
            "tiers": [
                _tier("device", on_device.sum(axis=1), engine.budget.capacity * len(sizes), sizes),
                *([_tier("ram", in_ram.sum(axis=1), engine.ram_slots, sizes)] if engine.ram_slots else []),
                _tier("disk", np.full(len(sizes), experts), experts * len(sizes), sizes),
            ],
            "decode": engine.statistics.decode.fields(),
        }


def answer_fields(log: AnswerLog, seen: int) -> dict[str, Any]:
    """An answer from the token after those that were `seen`, and what it took so far."""
    count = len(log.fetched)  # the last one that `add` writes
    first = max(min(seen, count), count - MOST_TOKENS)
    return {
        "number": log.number,
        "model": log.model,
        "prompt_tokens": log.prompt_tokens,
        "count": count,
        "first_seconds": log.seconds[0] if count else 0.0,
        "last_seconds": log.seconds[count - 1] if count else 0.0,
        "first": first,
        "tokens": log.tokens[first:count],
        "seconds": [round(seconds, 4) for seconds in log.seconds[first:count]],
        "fetched": log.fetched[first:count],
    }


def _digits(row_E: np.ndarray) -> str:
    """A digit an expert: 2 on the device, 1 in RAM, 0 on disk."""
    return (row_E + ord("0")).astype(np.uint8).tobytes().decode("ascii")


def _tier(name: str, experts_L: np.ndarray, slots: int, expert_bytes: tuple[int, ...]) -> dict[str, Any]:
    used_bytes = int(experts_L @ np.asarray(expert_bytes))
    return {"name": name, "experts": int(experts_L.sum()), "slots": slots, "bytes": used_bytes}
