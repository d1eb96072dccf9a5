"""The file of tuned routers: trained tensors, and by checksum the tensors of the base that they replace."""

import hashlib
import json
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from dwellmoe.adapter_folder import ADAPTER_WEIGHTS
from dwellmoe.base_model import BaseModel
from dwellmoe.cache.tensor_file import map_tensors, write_tensors
from dwellmoe.errors import UserError
from dwellmoe.export.trained_adapter import Router, Trained, merged_routers, say_lost

FORMAT, VERSION = "dwellmoe-tuned-routers", "1"
WHOLE = "dwellmoe export hf writes the whole model"


class RouterFile(NamedTuple):
    """What a file of tuned routers holds."""

    path: Path
    base: BaseModel
    tensors: dict[str, Tensor]
    """Name in the checkpoint -> tuned values, float32."""
    replaces: dict[str, str]
    """Name in the checkpoint -> checksum of the base's values."""


def checksum(values: Tensor) -> str:
    """Hash of numbers and shape, the same in whatever type holds these numbers exactly."""
    numbers = values.detach().to(torch.float32).contiguous().numpy()
    return hashlib.blake2b(repr(numbers.shape).encode() + numbers.tobytes(), digest_size=16).hexdigest()


def export_routers(trained: Trained, out: str) -> list[Router]:
    """Writes the routers that an adapter trained, and says what else it trained. Raises UserError."""
    for path in (Path(trained.path) / ADAPTER_WEIGHTS, *trained.shards.paths):
        if Path(out).resolve() == path.resolve():
            raise UserError(f"--out {out}: is a file of the adapter or its base: choose another")
    routers = [router for router in merged_routers(trained) if router.is_changed]
    say_lost(trained, ["routers"], WHOLE)
    metadata = {
        "format": FORMAT,
        "version": VERSION,
        "base_name": trained.base.name,
        "base_revision": _revision(trained),
        "base_fingerprint": trained.base.fingerprint,
        "replaces": json.dumps({router.name: checksum(router.base) for router in routers}),
    }
    write_tensors(out, {router.name: router.tuned.numpy() for router in routers}, metadata)
    return routers


def _revision(trained: Trained) -> str:
    """The commit of the base on the hub, which its folder in the hub's cache is called by; '' elsewhere."""
    folder = trained.shards.paths[0].parent
    return folder.name if folder.parent.name == "snapshots" else ""


def read_routers(path: str) -> RouterFile:
    """Reads a file of tuned routers. Raises UserError for any other file."""
    tensors, metadata = map_tensors(path)
    if metadata.get("format") != FORMAT:
        raise UserError(f"{path}: no file of tuned routers: dwellmoe export router writes one")
    if metadata.get("version") != VERSION:
        raise UserError(f"{path}: version {metadata.get('version')!r:.20}, expected {VERSION}")
    try:
        base = BaseModel(metadata["base_name"], metadata["base_fingerprint"])
        replaces = {str(name): str(found) for name, found in json.loads(metadata["replaces"]).items()}
    except (KeyError, ValueError, AttributeError, RecursionError):
        raise UserError(f"{path}: its metadata does not say which tensors it replaces") from None
    if replaces.keys() != tensors.keys() or not tensors:
        raise UserError(f"{path}: its metadata names other tensors than it holds")
    values = {name: torch.from_numpy(tensor.copy()) for name, tensor in tensors.items()}
    if wrong := [name for name, value in values.items() if value.dtype != torch.float32]:
        raise UserError(f"{path}: '{wrong[0]}' is not stored as F32")
    if wrong := [name for name, value in values.items() if not value.isfinite().all()]:
        raise UserError(f"{path}: '{wrong[0]}' holds NaN or infinity")
    return RouterFile(Path(path), base, values, replaces)
