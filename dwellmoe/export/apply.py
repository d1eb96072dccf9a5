"""Puts tuned routers on a copy of their base: every file copied, the routers' bytes replaced.

The routers are known by their content, so the copy may lie anywhere, be sharded in another way, and hold its
numbers in any type that holds them exactly.
"""

import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor

from dwellmoe.base_model import base_model
from dwellmoe.errors import UserError
from dwellmoe.export.patching import copy_range, patch
from dwellmoe.export.router_file import RouterFile, checksum, read_routers
from dwellmoe.files import check_new_folder, replacing_path, writing
from dwellmoe.log import warn_once
from dwellmoe.model_folder import check_model_folder
from dwellmoe.offload.io.number_types import DTYPES
from dwellmoe.offload.io.packed_index import INDEX, PackedIndex, checksum_of, packed_index
from dwellmoe.offload.io.shards import Shards, StoredTensor, chunks_of, files_beside_weights, find_shards

CARD = "README.md"


def apply_routers(routers: str, model_name: str, out: str) -> int:
    """Writes the whole model with the routers of the file, and gives how many tensors were replaced. Raises
    UserError for a model that is not their base.
    """
    check_new_folder(out)
    if Path(model_name).is_dir() and Path(model_name).resolve() in Path(out).resolve().parents:
        raise UserError(f"--out '{out}': lies in the folder of '{model_name}': choose another")
    file = read_routers(routers)
    check_model_folder(model_name, with_tokenizer=False)
    shards = find_shards(model_name)
    _check_replaced(file, shards, model_name)
    if (found := base_model(model_name)).fingerprint != file.base.fingerprint:
        warn_once(
            f"warning: the routers were trained on '{file.base.name}' (fingerprint {file.base.fingerprint}); "
            f"'{found.name}' has the same routers and differs elsewhere ({found.fingerprint})"
        )
    with writing(Path(out)), replacing_path(Path(out)) as beside:
        _write(file, shards, beside)
    return len(file.tensors)


def _check_replaced(file: RouterFile, shards: Shards, model_name: str) -> None:
    """Raises UserError unless the checkpoint holds exactly the tensors that are to be replaced."""
    for name, tuned in file.tensors.items():
        stored = shards.tensors.get(name)
        if stored is None:
            raise UserError(f"'{model_name}' has no tensor '{name}': {file.path} is for '{file.base.name}'")
        if stored.dtype not in DTYPES:
            raise UserError(f"'{model_name}': '{name}' is stored as {stored.dtype}, not as {_types()}")
        values = read_tensor(shards, stored)
        if values.shape != tuned.shape:
            raise UserError(
                f"'{model_name}': '{name}' is {list(values.shape)}, in {file.path} {list(tuned.shape)}"
            )
        if checksum(values) != file.replaces[name]:
            done = " (these are the tuned values already)" if torch.equal(_as(tuned, stored), values) else ""
            raise UserError(
                f"'{model_name}': '{name}' is not the tensor that {file.path} replaces, of the base "
                f"'{file.base.name}'{done}"
            )


def _types() -> str:
    return ", ".join(DTYPES)


def read_tensor(shards: Shards, stored: StoredTensor) -> Tensor:
    """One tensor of a checkpoint, in memory of its own."""
    with open(shards.paths[stored.shard], "rb") as file:
        content = bytearray(os.pread(file.fileno(), stored.nbytes, stored.offset))
    return torch.frombuffer(content, dtype=DTYPES[stored.dtype]).reshape(stored.shape)


def _as(tuned: Tensor, stored: StoredTensor) -> Tensor:
    return tuned.to(DTYPES[stored.dtype])


def _write(file: RouterFile, shards: Shards, folder: Path) -> None:
    folder.mkdir()
    for path in files_beside_weights(shards.paths[0].parent):
        shutil.copyfile(path, folder / path.name)
    for number, path in enumerate(shards.paths):
        with open(path, "rb") as source, open(folder / path.name, "wb") as target:
            copy_range(source, 0, path.stat().st_size, target)
            patch(target, dict(_ranges(file.tensors, shards, number)))
    if index := packed_index(str(folder)):
        _note_checksums(index, folder, file.tensors)
    _write_card(file, folder / CARD)


def _note_checksums(index: PackedIndex, folder: Path, names: Iterable[str]) -> None:
    """Puts the checksums of tensors that were replaced into what a packed model says of itself."""
    shards = find_shards(str(folder))
    places = {name: shards.tensors[name] for name in names}
    found = {name: checksum_of(chunks_of(shards.paths[each.shard], each)) for name, each in places.items()}
    (folder / INDEX).write_text(index._replace(others=index.others | found).text(), encoding="utf-8")


def _ranges(tensors: Mapping[str, Tensor], shards: Shards, shard: int) -> Iterator[tuple[int, bytes]]:
    for name, tuned in tensors.items():
        stored = shards.tensors[name]
        if stored.shard == shard:
            yield stored.offset, _as(tuned, stored).contiguous().view(torch.uint8).numpy().tobytes()


def _write_card(file: RouterFile, path: Path) -> None:
    """Adds to the base's model card what was done."""
    before = path.read_text(encoding="utf-8").rstrip() + "\n\n" if path.exists() else ""
    path.write_text(
        f"{before}## Tuned routers\n\nThis is '{Path(file.base.name).name}' (fingerprint "
        f"{file.base.fingerprint}) with {len(file.tensors)} tensors of its routers replaced by those of "
        f"`{file.path.name}`; every other byte of the weights is the base's. Made with `dwellmoe apply`; "
        "`dwellmoe export router` makes such a file.\n",
        encoding="utf-8",
    )
