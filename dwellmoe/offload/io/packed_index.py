"""What a packed model says of itself: `experts.json`, beside its weights. Without torch."""

import json
from collections.abc import Iterable
from typing import Any, NamedTuple

import xxhash

from dwellmoe.errors import UserError
from dwellmoe.offload.io.shards import cached_file_of

INDEX, CONFIG = "experts.json", "config.json"
KEY, METHOD = "quantization_config", "dwellmoe"
"""By which its configuration says that the weights are quantised: nothing else takes them for plain ones."""
AS_STORED = "as_stored"
"""Of `--expert_format` and `--format`: as the checkpoint has its experts."""
VERSION = 3
AGAIN = "pack the checkpoint again"


class PackedLayer(NamedTuple):
    """The records of one MoE layer's experts."""

    records: str
    """The tensor of the checkpoint that they are, uint8 [experts, bytes], each filled up to whole pages."""
    record_bytes: int
    formats: dict[str, str]
    """Parameter -> the format of an expert's slice of it (see `format_of`), in the order of a record."""
    checksums: tuple[str, ...]
    """One an expert."""


class PackedIndex(NamedTuple):
    """A packed model: what it was made of, and where its experts are."""

    format: str
    """`int4:group=32`, `as_stored`, ..."""
    source: str
    """Fingerprint of the weights that were packed."""
    source_experts: str
    """Of their experts alone."""
    weights: str
    """Of its own weights."""
    own_experts: str
    """Of its records alone."""
    layers: tuple[PackedLayer, ...]
    others: dict[str, str]
    """Every other tensor -> its checksum."""

    def text(self) -> str:
        """The content of the file, the same for the same model."""
        fields = self._asdict() | {"layers": [layer._asdict() for layer in self.layers]}
        table = {"version": VERSION, "checksum": _digest(fields), **fields}
        return json.dumps(table, indent=1) + "\n"


def checksum_of(chunks: Iterable[Any]) -> str:
    """Of a record or a tensor, given as bytes or arrays that follow one another."""
    found = xxhash.xxh3_64()
    for chunk in chunks:
        found.update(chunk)
    return found.hexdigest()


def is_packed(model_name: str) -> bool:
    """Whether the configuration of a folder, or of a name on the hub, is that of a packed model."""
    try:
        path = cached_file_of(model_name, CONFIG)
        table = json.loads(path.read_text(encoding="utf-8")) if path else {}
        return table[KEY]["quant_method"] == METHOD
    except (UserError, OSError, ValueError, KeyError, TypeError, RecursionError):
        return False  # whoever reads the checkpoint says what is wrong with it


def packed_config(table: dict[str, Any], format: str) -> dict[str, Any]:
    """The configuration of a packed model, made of the checkpoint's. It keeps how that was quantised."""
    table = source_config(table)
    form = {"quant_method": METHOD, "version": VERSION, "format": format, "source": table.get(KEY)}
    return table | {KEY: form}


def source_config(table: dict[str, Any]) -> dict[str, Any]:
    """The configuration of the checkpoint that was packed; any other one as it is."""
    form = table.get(KEY)
    if not isinstance(form, dict) or form.get("quant_method") != METHOD:
        return table
    rest = {name: value for name, value in table.items() if name != KEY}
    return rest | ({KEY: form["source"]} if form.get("source") else {})


def packed_index(model_name: str) -> PackedIndex | None:
    """What a packed model says of itself; None for any other checkpoint. Raises UserError as `read_index`."""
    return read_index(model_name) if is_packed(model_name) else None


def read_index(model_name: str) -> PackedIndex:
    """What a packed model says of itself. Raises UserError for a folder that holds none, one of another
    version, and a file that is not as it was written.
    """
    path = cached_file_of(model_name, INDEX)
    if path is None:
        raise UserError(f"'{model_name}' holds no packed model: {INDEX} is missing")
    try:
        table = json.loads(path.read_text(encoding="utf-8"))
        version = table.pop("version")
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise UserError(f"{path}: broken: {AGAIN}") from None
    if version != VERSION:
        raise UserError(f"{path}: packed by another version of dwellmoe ({version}, not {VERSION}): {AGAIN}")
    try:
        if table.pop("checksum") != _digest(table):
            raise UserError(f"{path}: not as it was written: {AGAIN}")
        layers = tuple(
            PackedLayer(**{**layer, "checksums": tuple(layer["checksums"])}) for layer in table["layers"]
        )
        return PackedIndex(**{**table, "layers": layers})
    except (KeyError, TypeError, ValueError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{path}: broken: {AGAIN}") from None


def _digest(fields: dict[str, Any]) -> str:
    return checksum_of([json.dumps(fields, sort_keys=True).encode()])


def damage_at(offset: int, nbytes: int) -> str:
    """What a message says of bytes that are not what was packed."""
    return f"{nbytes} bytes at offset {offset} are not what was packed (their checksum differs): {AGAIN}"
