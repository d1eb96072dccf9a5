"""The folder where fetched and prepared data are kept; several processes make one thing there once."""

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from filelock import FileLock

from dwellmoe.files import replacing_path


def cache_folder() -> Path:
    """Where downloads and prepared data are kept: $DWELLMOE_CACHE, else ~/.cache/dwellmoe."""
    return Path(os.environ.get("DWELLMOE_CACHE", Path.home() / ".cache" / "dwellmoe"))


def digest(value: Any) -> str:
    """16 hexadecimal digits that name a JSON-able value."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]


def build_once(room: str, name: str, build: Callable[[Path], object]) -> Path:
    """Path `room/name` in the cache folder, made by `build(path)` if missing; never seen half-made."""
    target = cache_folder() / room / name
    if target.exists():
        return target
    with only_one(target):
        if not target.exists():
            with replacing_path(target) as beside:
                build(beside)
    return target


def only_one(target: Path) -> FileLock:
    """A lock for the process that makes `target`; the others wait."""
    target.parent.mkdir(parents=True, exist_ok=True)
    return FileLock(f"{target}.lock")
