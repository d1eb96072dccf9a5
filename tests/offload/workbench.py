"""Tiny checkpoints and engines over them, for the tests of offloading."""

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForCausalLM

from dwellmoe.cache.tiers.watermark.placement import DEVICE, DISK, RAM
from dwellmoe.offload import Engine, EngineSettings, load_with_cache
from dwellmoe.offload.pack import pack
from tests.session_folder import session_folder
from tests.tiny_models import tiny_model


@cache
def checkpoint(family: str, dtype: torch.dtype = torch.float32, **overrides) -> Path:
    """A random model of this family on disk, made once a session."""
    folder = session_folder(family)
    model: Any = tiny_model(family, **overrides)
    model.to(dtype).save_pretrained(folder)
    return folder


@cache
def packed(family: str, format: str) -> Path:
    """The same model in 16 bits, packed in a format."""
    folder = session_folder(f"packed-{family}")
    pack(str(checkpoint(family, torch.bfloat16)), folder, format, workers=1)
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
    """The experts of each layer whose weights are on the device."""
    return [set(on_device_E.nonzero()[0].tolist()) for on_device_E in engine.loaded_on_device()]


def cached(engine: Engine) -> list[set[int]]:
    """The experts of each layer that the engine's caches hold on the device."""
    return [set(engine.on_device(layer.index).nonzero()[0].tolist()) for layer in engine.layers]


def tiers(engine: Engine) -> np.ndarray:
    """uint8 [N]: DEVICE, RAM or DISK of every expert, by the engine's caches."""
    on_device_LE = np.array([engine.on_device(layer.index) for layer in engine.layers])
    in_ram_LE = np.array([engine.in_ram(layer.index) for layer in engine.layers])
    return np.where(on_device_LE, DEVICE, np.where(in_ram_LE, RAM, DISK)).astype(np.uint8).ravel()
