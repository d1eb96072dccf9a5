"""Knows how the build keeps what it has finished: whole files under their names, or none."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file


def write_beside(path: Path, write: Callable[[Path], object]) -> None:
    """Lets `write` make a file beside `path` and moves it there when it is whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(path.name + ".partial")
    write(beside)
    os.replace(beside, path)


def save_block(block: torch.nn.Module, path: Path) -> None:
    """Keeps a block's weights."""
    weights = {name: weight.contiguous() for name, weight in block.state_dict().items()}
    write_beside(path, lambda beside: save_file(weights, beside))


def load_block(block: torch.nn.Module, path: Path) -> None:
    """Reads what `save_block` kept."""
    block.load_state_dict(load_file(path))


def save_numbers(numbers: Any, path: Path) -> None:
    """Keeps a JSON value, readably."""
    write_beside(path, lambda beside: beside.write_text(json.dumps(numbers, indent=1) + "\n"))


def load_numbers(path: Path, otherwise: Any) -> Any:
    """What `save_numbers` kept, or `otherwise`."""
    return json.loads(path.read_text()) if path.exists() else otherwise
