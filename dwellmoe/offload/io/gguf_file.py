"""Reads the header of a GGUF file, or of all parts of a split one."""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from gguf import GGUFReader, GGUFValueType
from gguf.gguf_reader import ReaderTensor
from gguf.quants import dequantize

from dwellmoe.cache.tensor_file import check_regular
from dwellmoe.errors import UserError, first_line

MAGIC = b"GGUF"
COUNT_PLACE = 16
"""Byte at which the number of metadata entries lies, 8 bytes long."""
SPLIT = re.compile(r"-(\d{5})-of-(\d{5})\.gguf$")
DAMAGED = (ValueError, KeyError, IndexError, TypeError, OverflowError, RecursionError, MemoryError)
"""What the reader raises for contents that cannot be."""


class GgufPart(NamedTuple):
    """One file: its metadata and where its tensors lie."""

    path: Path
    metadata: Mapping[str, Any]
    """Single values and texts; arrays are left out."""
    tensors: dict[str, ReaderTensor]
    metadata_end: int
    """First byte behind the metadata."""
    data_begin: int
    alignment: int


class _HeaderReader(GGUFReader):
    """Steps over arrays of texts: a vocabulary takes the library's reader seconds, and is not needed."""

    def _get_field_parts(self, orig_offs: int, raw_type: int) -> Any:
        if GGUFValueType(raw_type) != GGUFValueType.ARRAY:
            return super()._get_field_parts(orig_offs, raw_type)
        kind = GGUFValueType(int(self._get(orig_offs, np.uint32)[0]))
        count = int(self._get(orig_offs + 4, np.uint64)[0])
        begin = orig_offs + 12
        if scalar := self.gguf_scalar_to_np.get(kind):
            end = begin + count * np.dtype(scalar).itemsize
        elif kind == GGUFValueType.STRING:
            end = self._end_of_texts(begin, count)
        else:
            return super()._get_field_parts(orig_offs, raw_type)
        if end > len(self.data):
            raise ValueError("an array of its metadata ends behind the file")
        return end - orig_offs, [self.data[orig_offs:end]], [0], [GGUFValueType.ARRAY, kind]

    def _end_of_texts(self, begin: int, count: int) -> int:
        content = memoryview(self.data)  # type: ignore[arg-type]
        for _ in range(count):
            length = content[begin : begin + 8]
            if len(length) < 8:
                raise ValueError("a text of its metadata ends behind the file")
            begin += 8 + int.from_bytes(length, "little")
        return begin


def read_gguf(base: str) -> list[GgufPart]:
    """The file, or all parts of the split file that it belongs to, in order. Raises UserError for what is not
    a whole GGUF file.
    """
    parts = [_read_part(path) for path in _paths(Path(base))]
    counts = {int(part.metadata.get("split.count", 0)) for part in parts} - {0}
    if counts - {len(parts)}:
        raise UserError(
            f"{base}: part of a GGUF of {counts.pop()} files, of which it is the only one by its name: "
            "the parts must keep their names, ...-00001-of-0000N.gguf"
        )
    numbers = [int(part.metadata.get("split.no", number)) for number, part in enumerate(parts)]
    if numbers != list(range(len(parts))):
        raise UserError(f"{base}: the parts hold the numbers {numbers}: files were renamed")
    total = parts[0].metadata.get("split.tensors.count")
    if total is not None and total != sum(len(part.tensors) for part in parts):
        raise UserError(f"{base}: the parts hold other than the {total} tensors that the first one names")
    return parts


def _paths(base: Path) -> list[Path]:
    found = SPLIT.search(base.name)
    if not found:
        return [base]
    paths = [split_path(base, number, int(found[2])) for number in range(int(found[2]))]
    if missing := [path for path in paths if not path.exists()]:
        raise UserError(f"{missing[0]}: missing: a part of the split GGUF '{base}'")
    return paths


def split_path(path: Path, number: int, count: int) -> Path:
    """The name of a part; a file that is not split keeps its own."""
    if count == 1 and not SPLIT.search(path.name):
        return path
    stem = SPLIT.sub("", path.name).removesuffix(".gguf")
    return path.with_name(f"{stem}-{number + 1:05d}-of-{count:05d}.gguf")


def _read_part(path: Path) -> GgufPart:
    try:
        check_regular(path)
        with open(path, "rb") as file:
            magic = file.read(4)
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from None
    if magic != MAGIC:
        raise UserError(f"{path}: not a GGUF file")
    try:
        reader = _HeaderReader(path)
        if reader.byte_order != "I":
            raise UserError(f"{path}: a big-endian GGUF, which is not supported")
        return _part(path, reader)
    except UserError:
        raise
    except DAMAGED as error:
        raise UserError(f"{path}: a truncated or damaged GGUF file: {first_line(error)}") from None


def _part(path: Path, reader: GGUFReader) -> GgufPart:
    fields = {name: field for name, field in reader.fields.items() if not name.startswith("GGUF.")}
    metadata = {
        name: field.contents() for name, field in fields.items() if field.types[0] != GGUFValueType.ARRAY
    }
    return GgufPart(
        path=path,
        metadata=metadata,
        tensors={tensor.name: tensor for tensor in reader.tensors},
        metadata_end=max((_end(field) for field in fields.values()), default=COUNT_PLACE + 8),
        data_begin=int(reader.data_offset),
        alignment=int(reader.alignment),
    )


def _end(field: Any) -> int:
    return int(field.offset) + sum(int(part.nbytes) for part in field.parts)


def all_tensors(parts: list[GgufPart]) -> Iterator[tuple[GgufPart, ReaderTensor]]:
    """Every tensor with the part that holds it."""
    for part in parts:
        for tensor in part.tensors.values():
            yield part, tensor


def first_rows(tensor: ReaderTensor, count: int) -> np.ndarray | None:
    """The first rows of a tensor, float32; None for a type that the gguf package does not decode."""
    try:
        return dequantize(tensor.data[:count], tensor.tensor_type)
    except NotImplementedError:
        return None
