"""The base model of an adapter: recorded in the adapter's folder, and checked before the adapter is used."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from dwellmoe.errors import UserError
from dwellmoe.log import warn_once
from dwellmoe.offload.io.fingerprint import checkpoint_fingerprint
from dwellmoe.offload.io.packed_index import AS_STORED, packed_index
from dwellmoe.offload.io.shards import find_shards

BASE_FILE = "base_model.json"


class BaseModel(NamedTuple):
    """Which checkpoint an adapter belongs to."""

    name: str
    """Its name on the hub, or its folder as an absolute path."""
    fingerprint: str
    """Of its weights and configuration."""
    expert_format: str = ""
    """In which the experts were held, of `--expert_format` or of a packed model; empty: 16 or 32 bits."""


def base_model(model_name: str, expert_format: str | None = None) -> BaseModel:
    """What identifies a checkpoint. Raises UserError for one without readable weights."""
    packed = packed_index(model_name)
    if packed and expert_format in (None, AS_STORED):
        expert_format = packed.format
    return BaseModel(full_name(model_name), checkpoint_fingerprint(model_name), expert_format or "")


def base_bytes(model_name: str) -> int:
    """Bytes of a checkpoint's weights."""
    return sum(tensor.nbytes for tensor in find_shards(model_name).tensors.values())


def full_name(model_name: str) -> str:
    """The name by which a checkpoint is found from any folder: a hub's name, or an absolute path."""
    return str(Path(model_name).resolve()) if Path(model_name).is_dir() else model_name


def check_base_model(
    adapters: Iterable[str], model_name: str, allow_other: bool, expert_format: str | None = None
) -> None:
    """Raises UserError for an adapter folder whose record names other weights than the checkpoint's.

    An adapter without a record is used, and that it was not checked is said; so is it where the experts are
    held in another form than it was trained on.
    """
    records = {path: recorded_base(path) for path in adapters}
    found = base_model(model_name, expert_format) if any(records.values()) else None
    for path, trained_on in records.items():
        if not Path(path).is_dir():
            continue  # `load_adapters` refuses it
        if trained_on is None or found is None:
            warn_once(f"adapter '{path}' has no {BASE_FILE}: not checked whether '{model_name}' is its base")
        elif trained_on.fingerprint != found.fingerprint:
            _refuse(path, trained_on, found, allow_other)
        elif _lossy(trained_on) != _lossy(found):
            before, now = (each.expert_format or "16 or 32 bits" for each in (trained_on, found))
            warn_once(f"adapter '{path}' was trained beside experts in {before}, and runs beside {now}")


def _lossy(base: BaseModel) -> str:
    """The form of the experts, where it is not what the checkpoint says to the bit."""
    return "" if base.expert_format == AS_STORED else base.expert_format


def _refuse(path: str, trained_on: BaseModel, found: BaseModel, allow_other: bool) -> None:
    fault = (
        f"adapter '{path}' was trained on '{trained_on.name}' (fingerprint {trained_on.fingerprint}), not on "
        f"the weights and configuration of '{found.name}' ({found.fingerprint})"
    )
    if not allow_other:
        raise UserError(f"{fault}: give the --model_name it was trained on, or --allow_other_base True")
    warn_once(f"{fault}: used all the same (--allow_other_base)")


def recorded_base(path: str) -> BaseModel | None:
    """The record in an adapter's folder; None where there is none, which `load_adapters` may refuse."""
    file = Path(path) / BASE_FILE
    if not file.exists():
        return None
    try:
        table = json.loads(file.read_text(encoding="utf-8"))
        return BaseModel(str(table["name"]), str(table["fingerprint"]), str(table.get("expert_format") or ""))
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        raise UserError(f"'{file}' is no record of a base model (name and fingerprint)") from None
