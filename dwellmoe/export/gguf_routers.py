"""Replaces the routers of a GGUF file by tuned ones; every other byte of its tensors stays.

GGUF keeps routers in float32 whatever the experts are quantised to, so nothing is quantised anew, and every
tensor keeps its place. A key of the metadata says what was done. Without torch: a second is enough.
"""

import json
import struct
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
from gguf import GGMLQuantizationType, GGUFValueType
from gguf.gguf_reader import ReaderTensor

from dwellmoe.errors import UserError
from dwellmoe.export.patching import BLOCK_BYTES, copy_range, patch
from dwellmoe.export.router_file import Router, TunedRouters, checksum
from dwellmoe.files import check_writable, replacing
from dwellmoe.offload.gguf_names import ARCHITECTURE, GgufNames
from dwellmoe.offload.io.gguf_file import COUNT_PLACE, GgufPart, all_tensors, read_gguf, split_path

KEY = "dwellmoe.tuned_routers"
ROUTERS = "ffn_gate_inp.weight"
"""End of the names of routers."""


class Replacement(NamedTuple):
    """A tensor to overwrite."""

    name: str
    part: GgufPart
    place: int
    content: bytes


def read_base(path: str) -> list[GgufPart]:
    """The GGUF file of a base. Raises UserError for a dense model, and where routers were replaced before."""
    parts = read_gguf(path)
    if not any(tensor.name.endswith(ROUTERS) for _, tensor in all_tensors(parts)):
        name = parts[0].metadata.get(ARCHITECTURE)
        raise UserError(f"{path}: no routers (architecture {name!r:.40}, no tensor ends in {ROUTERS})")
    if KEY in parts[0].metadata:
        raise UserError(f"{path}: its routers were replaced before (key {KEY}): give the base's own GGUF")
    return parts


def replacements(parts: list[GgufPart], tuned: TunedRouters, may_be_done: bool) -> list[Replacement]:
    """Which tensors to overwrite. Raises UserError unless each one holds exactly the base's values.

    may_be_done  one that holds the tuned values already passes, as a killed run in place leaves it
    """
    names = GgufNames(parts[0])
    places = {tensor.name: (part, tensor) for part, tensor in all_tensors(parts)}
    found = []
    for router in tuned.routers:
        name = names.find(router.name)
        if name in places:
            part, tensor = places[name]
            _check_base(part, tensor, router, tuned, may_be_done)
        elif router.is_changed:
            raise UserError(
                f"{parts[0].path} (architecture '{names.architecture}', {names.layers} layers) has no tensor "
                f"for '{router.name}': it is of another model than the base '{tuned.base.name}'"
            )
        if router.is_changed:
            content = router.tuned.astype("<f4").tobytes()
            found.append(Replacement(tensor.name, part, int(tensor.data_offset), content))
    return found


def _check_base(
    part: GgufPart, tensor: ReaderTensor, router: Router, tuned: TunedRouters, may_be_done: bool
) -> None:
    if tensor.tensor_type != GGMLQuantizationType.F32:
        raise UserError(f"{part.path}: {tensor.name} is stored as {tensor.tensor_type.name}, expected F32")
    values = tensor.data
    if checksum(values) == router.replaces or (may_be_done and np.array_equal(values, router.tuned)):
        return
    why = _difference(values, router, tuned.routers)
    raise UserError(
        f"{part.path}: {tensor.name} is not '{router.name}' of the base '{tuned.base.name}' ({why}): "
        "nothing was written"
    )


def _difference(values: np.ndarray, router: Router, routers: Sequence[Router]) -> str:
    """How a router differs from the one that it should be, as far as its checksum or values tell."""
    if checksum(values.T) == router.replaces:
        return "it is transposed"
    if values.shape != router.tuned.shape:
        return f"shape {list(values.shape)}, expected {list(router.tuned.shape)}"
    if np.array_equal(values, router.tuned):
        return "these are the tuned values already"
    found = checksum(values)
    if other := next((each for each in routers if each.replaces == found), None):
        return f"it is '{other.name}'"
    if router.base is None:
        return "another base or revision, or its experts in another order"
    if np.array_equal(_sorted_rows(values), _sorted_rows(router.base)):
        return "its experts are in another order"
    return f"they differ by up to {np.abs(values - router.base).max():.2g}: another base or revision"


def _sorted_rows(values: np.ndarray) -> np.ndarray:
    flat = values.reshape(len(values), -1)
    return flat[np.lexsort(flat.T[::-1])]


def targets_of(parts: list[GgufPart], out: str | None) -> list[Path]:
    """The files that will be written for `--out`, one a part; without it those of the base. Raises UserError
    for one that cannot be.
    """
    targets = [
        split_path(Path(out), number, len(parts)) if out else part.path for number, part in enumerate(parts)
    ]
    for part, target in zip(parts, targets, strict=True):
        check_writable(target)
        if target.exists() and not target.is_file():
            raise UserError(f"--out {target}: not a file: a GGUF is not written in one go")
        if out and target.exists() and target.samefile(part.path):
            raise UserError(f"--out {target}: is the file of --base: choose another, or give --in_place")
    return targets


def write_patched(
    parts: list[GgufPart], found: Sequence[Replacement], out: str, note: Mapping[str, object]
) -> list[Path]:
    """Writes the file, or all parts, with the tensors replaced and `note` in the metadata; all or nothing."""
    targets = targets_of(parts, out)
    with ExitStack() as stack:
        for number, (part, target) in enumerate(zip(parts, targets, strict=True)):
            file = stack.enter_context(replacing(target))
            entry = _entry(note, part.alignment) if number == 0 else b""
            _write_part(part, entry, _ranges(part, found, len(entry)), file)
    return targets


def _write_part(part: GgufPart, entry: bytes, ranges: Mapping[int, bytes], file: BinaryIO) -> None:
    with open(part.path, "rb") as source:
        if entry:
            header = bytearray(source.read(part.metadata_end))
            (count,) = struct.unpack_from("<Q", header, COUNT_PLACE)
            struct.pack_into("<Q", header, COUNT_PLACE, count + 1)
            file.write(header + entry)
            copy_range(source, part.metadata_end, part.data_begin, file)
            copy_range(source, part.data_begin, part.path.stat().st_size, file)
        else:
            copy_range(source, 0, part.path.stat().st_size, file)
        patch(file, ranges)


def patch_in_place(parts: list[GgufPart], found: Sequence[Replacement]) -> None:
    """Overwrites the tensors in the files of the base; their metadata stays."""
    for part in parts:
        if ranges := _ranges(part, found, 0):
            with open(part.path, "r+b") as file:
                patch(file, ranges)


def _ranges(part: GgufPart, found: Sequence[Replacement], shift: int) -> dict[int, bytes]:
    return {each.place + shift: each.content for each in found if each.part.path == part.path}


def note_of(tuned: TunedRouters) -> dict[str, object]:
    """What the metadata says of a patched file."""
    return {
        "adapter": tuned.source.resolve().name,
        "base": Path(tuned.base.name).name,
        "base_fingerprint": tuned.base.fingerprint,
        "tensors": {router.name: checksum(router.tuned) for router in tuned.routers if router.is_changed},
    }


def _entry(note: Mapping[str, object], alignment: int) -> bytes:
    """A text of the metadata, filled with spaces to whole blocks: the tensors then move by whole blocks, keep
    their alignment, and can be shared with the base's file.
    """
    name, text = KEY.encode(), json.dumps(note).encode()
    head = struct.pack("<Q", len(name)) + name + struct.pack("<I", GGUFValueType.STRING)
    text += b" " * (-(len(head) + 8 + len(text)) % max(BLOCK_BYTES, alignment))
    return head + struct.pack("<Q", len(text)) + text


def export_gguf_routers(parts: list[GgufPart], tuned: TunedRouters, out: str | None) -> list[str]:
    """Writes the GGUF with tuned routers, or changes the base's in place where `out` is None. Gives what was
    written, in lines to print. Raises UserError before anything is.
    """
    if tuned.source.resolve() in [path.resolve() for path in targets_of(parts, out)]:
        raise UserError(f"--out {out}: is the file of --adapter: choose another")
    return write_replaced(parts, replacements(parts, tuned, may_be_done=out is None), tuned, out)


def write_replaced(
    parts: list[GgufPart], found: Sequence[Replacement], tuned: TunedRouters, out: str | None
) -> list[str]:
    """As `export_gguf_routers`, of what was checked before."""
    if out:
        paths = write_patched(parts, found, out, note_of(tuned))
        lines = [f"{path}: written" for path in paths]
    else:
        patch_in_place(parts, found)
        lines = [f"{parts[0].path}: changed in place; its metadata is as it was, and does not say so"]
    return [*lines, f"{len(found)} tensors of routers replaced"]
