"""The folder of an adapter: which files it holds. Without torch."""

import json
from pathlib import Path

from dwellmoe.cache.tensor_file import read_header
from dwellmoe.errors import UserError
from dwellmoe.files import check_no_pointers

BASE = "base"
"""The variant without adapters."""
ADAPTER_FILE = "adapter_config.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"


def check_adapter_folder(path: str) -> None:
    """Raises UserError for a folder that is missing, lacks a file of an adapter or holds one that is none."""
    folder = Path(path)
    if not folder.is_dir():
        near = sorted(str(entry) for entry in folder.parent.glob("checkpoint-*"))
        choices = f": choose from {', '.join(near)}" if near else ""
        raise UserError(f"no adapter folder at '{path}'{choices}")
    check_no_pointers(folder)
    for file in (ADAPTER_FILE, ADAPTER_WEIGHTS):
        if not (folder / file).exists():
            raise UserError(f"no adapter in '{path}': {file} is missing")
    read_header(folder / ADAPTER_WEIGHTS)
    try:
        found = json.loads((folder / ADAPTER_FILE).read_text(encoding="utf-8"))
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise UserError(f"'{folder / ADAPTER_FILE}' cannot be read: not a JSON object")
