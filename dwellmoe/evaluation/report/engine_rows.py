"""Knows what an offloading engine says of the time a variant ran in it; does not run it."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from dwellmoe.evaluation.evaluated_model import EvaluatedModel
from dwellmoe.offload import engine_of


@contextmanager
def counted(evaluated: EvaluatedModel) -> Iterator[dict[str, Any]]:
    """A row that is filled when the block ends: what the engine did in it, begun with cold caches. It stays
    empty where all experts are in memory.
    """
    row: dict[str, Any] = {}
    engine = engine_of(evaluated.model)
    if engine is None:
        yield row
        return
    engine.empty()
    engine.statistics.reset()
    before = engine.live.split.cache.counts()
    yield row
    row |= engine.fields()
    counts = {name: count - before[name] for name, count in engine.live.split.cache.counts().items()}
    asked = counts["hits"] + counts["misses"]
    row["decode_cache"] = counts | {"hit_rate": counts["hits"] / asked if asked else 0.0}


def reply_cost(evaluated: EvaluatedModel) -> str:
    """What the engine's last reply cost, in words; empty where all experts are in memory. Starts counting
    anew.
    """
    engine = engine_of(evaluated.model)
    if engine is None:
        return ""
    found = engine.statistics.fields()
    engine.statistics.reset()
    decode = found["decode"]
    first, each = sum(found["first_token_seconds"][-1:]), found["token_seconds"] or 0.0
    read = (decode["disk_bytes"] + found["prefill"]["disk_bytes"]) / 1e6
    return (
        f"; engine: first token {first:.2f} s, then {each:.3f} s a token, {read:.0f} MB read, "
        f"hit rate {decode['device_hit_rate']:.3f}"
    )
