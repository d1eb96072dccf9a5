"""What the build keeps of each stage: weights and numbers in files that are whole or absent."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from dwellmoe.files import replacing_path


def save_block(block: torch.nn.Module, path: Path) -> None:
    """Keeps a block's weights."""
    weights = {name: weight.contiguous() for name, weight in block.state_dict().items()}
    with replacing_path(path) as beside:
        save_file(weights, beside)


def load_block(block: torch.nn.Module, path: Path) -> None:
    """Reads what `save_block` kept."""
    block.load_state_dict(load_file(path))


def save_numbers(numbers: Any, path: Path) -> None:
    """Keeps a JSON value, readably."""
    with replacing_path(path) as beside:
        beside.write_text(json.dumps(numbers, indent=1) + "\n")


def load_numbers(path: Path, otherwise: Any) -> Any:
    """What `save_numbers` kept, or `otherwise`."""
    return json.loads(path.read_text()) if path.exists() else otherwise
