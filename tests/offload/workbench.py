"""Tiny checkpoints and engines over them, for the tests of this room."""

from functools import cache
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from dwellmoe.offload import Engine, EngineSettings, load_with_cache
from tests.tiny_models import tiny_model


@cache
def checkpoint(family: str, dtype: torch.dtype = torch.float32, **overrides) -> Path:
    """A random model of this family on disk, made once a session."""
    folder = Path(mkdtemp(prefix=f"dwellmoe-{family}-"))
    model: Any = tiny_model(family, **overrides)
    model.to(dtype).save_pretrained(folder)
    return folder


@cache
def resident(family: str, dtype: torch.dtype = torch.float32) -> Any:
    """The same model wholly in memory, as transformers loads it."""
    return AutoModelForCausalLM.from_pretrained(checkpoint(family, dtype), dtype=torch.float32).eval()


def engine_of(
    family: str, folder: Path | None = None, dtype: torch.dtype = torch.float32, **settings
) -> tuple[Any, Engine]:
    """(model, engine) with small buffers."""
    given = EngineSettings(**{"expert_budget": "2", "prefill_buffer": 2, "readers": 2, **settings})
    return load_with_cache(str(folder or checkpoint(family)), given, dtype=dtype)


def prompt(tokens: int = 12, rows: int = 1, seed: int = 0) -> torch.Tensor:
    draw = torch.Generator().manual_seed(seed)
    return torch.randint(3, 60, (rows, tokens), generator=draw)


def present(engine: Engine) -> list[set[int]]:
    """Who of each layer has its weights on the device."""
    slot_of = engine.cached_experts.residents.slot_of
    experts = engine.live.experts
    return [
        {expert for expert in range(experts) if slot_of[layer * experts + expert] >= 0}
        for layer in range(engine.live.layers)
    ]


def on_the_books(engine: Engine) -> list[set[int]]:
    return [set(engine.live.on_device(layer).nonzero()[0].tolist()) for layer in range(engine.live.layers)]
