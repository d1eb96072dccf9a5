"""The file of tuned routers: trained tensors, and by checksum the tensors of the base that they replace.

Without torch, so that routers are put into a GGUF file at once.
"""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from dwellmoe.base_model import BaseModel
from dwellmoe.cache.tensor_file import map_tensors, read_header, write_tensors
from dwellmoe.errors import UserError

FORMAT, VERSION = "dwellmoe-tuned-routers", "1"


class Router(NamedTuple):
    """One tensor of a router, in float32."""

    name: str
    """In the checkpoint."""
    tuned: np.ndarray
    replaces: str
    """Checksum of the base's values."""
    base: np.ndarray | None = None
    """The base's values; None where only their checksum is known."""

    @property
    def is_changed(self) -> bool:
        return self.base is None or not np.array_equal(self.base, self.tuned)


class TunedRouters(NamedTuple):
    """The routers of a tuned model."""

    source: Path
    """The file, or the adapter's folder, that they are from."""
    base: BaseModel
    routers: Sequence[Router]


def checksum(values: np.ndarray) -> str:
    """Hash of numbers and shape, the same in whatever type holds these numbers exactly."""
    numbers = np.asarray(values, np.float32)
    return hashlib.blake2b(repr(numbers.shape).encode() + numbers.tobytes(), digest_size=16).hexdigest()


def write_routers(path: str, tuned: TunedRouters, base_revision: str) -> None:
    """Writes the file; `base_revision`: the commit of the base on the hub, or ''. Raises UserError."""
    metadata = {
        "format": FORMAT,
        "version": VERSION,
        "base_name": tuned.base.name,
        "base_revision": base_revision,
        "base_fingerprint": tuned.base.fingerprint,
        "replaces": json.dumps({router.name: router.replaces for router in tuned.routers}),
    }
    write_tensors(path, {router.name: router.tuned for router in tuned.routers}, metadata)


def read_routers(path: str) -> TunedRouters:
    """Reads a file of tuned routers. Raises UserError for any other file."""
    described = read_header(Path(path))[0].get("__metadata__")
    if not isinstance(described, dict) or described.get("format") != FORMAT:
        raise UserError(f"{path}: no file of tuned routers, as dwellmoe export router writes one")
    tensors, metadata = map_tensors(path)
    if metadata.get("version") != VERSION:
        raise UserError(f"{path}: version {metadata.get('version')!r:.20}, expected {VERSION}")
    try:
        base = BaseModel(metadata["base_name"], metadata["base_fingerprint"])
        replaces = {str(name): str(found) for name, found in json.loads(metadata["replaces"]).items()}
    except (KeyError, ValueError, AttributeError, RecursionError):
        raise UserError(f"{path}: its metadata does not say which tensors it replaces") from None
    if replaces.keys() != tensors.keys() or not tensors:
        raise UserError(f"{path}: its metadata names other tensors than it holds")
    if wrong := [name for name, values in tensors.items() if values.dtype != np.float32]:
        raise UserError(f"{path}: '{wrong[0]}' is not stored as F32")
    if wrong := [name for name, values in tensors.items() if not np.isfinite(values).all()]:
        raise UserError(f"{path}: '{wrong[0]}' holds NaN or infinity")
    routers = [Router(name, np.array(values), replaces[name]) for name, values in tensors.items()]
    return TunedRouters(Path(path), base, routers)
