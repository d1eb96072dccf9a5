"""Puts tuned routers on a copy of their base: every file copied, the routers' bytes replaced.

The routers are known by their content, so the copy may lie anywhere, be sharded in another way, and hold its
numbers in any type that holds them exactly.
"""

import os
import shutil
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor

from dwellmoe.base_model import base_model
from dwellmoe.errors import UserError
from dwellmoe.export.patching import copy_range, patch
from dwellmoe.export.router_file import Router, TunedRouters, checksum, read_routers
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
    tuned = read_routers(routers)
    check_model_folder(model_name, with_tokenizer=False)
    shards = find_shards(model_name)
    for router in tuned.routers:
        _check_replaced(router, tuned, shards, model_name)
    if (found := base_model(model_name)).fingerprint != tuned.base.fingerprint:
        warn_once(
            f"warning: the routers were trained on '{tuned.base.name}' (fingerprint "
            f"{tuned.base.fingerprint}); '{found.name}' has the same routers and differs elsewhere "
            f"({found.fingerprint})"
        )
    with writing(Path(out)), replacing_path(Path(out)) as beside:
        _write(tuned, shards, beside)
    return len(tuned.routers)


def _check_replaced(router: Router, tuned: TunedRouters, shards: Shards, model_name: str) -> None:
    """Raises UserError unless the checkpoint holds exactly the tensor that is to be replaced."""
    name, stored = router.name, shards.tensors.get(router.name)
    if stored is None:
        raise UserError(f"'{model_name}' has no tensor '{name}': {tuned.source} is for '{tuned.base.name}'")
    if stored.dtype not in DTYPES:
        raise UserError(f"'{model_name}': '{name}' is stored as {stored.dtype}, not as {_types()}")
    values = read_tensor(shards, stored)
    if values.shape != router.tuned.shape:
        raise UserError(
            f"'{model_name}': '{name}' is {list(values.shape)}, in {tuned.source} {list(router.tuned.shape)}"
        )
    if checksum(values.float().numpy()) != router.replaces:
        done = " (these are the tuned values already)" if torch.equal(_as(router, stored), values) else ""
        raise UserError(
            f"'{model_name}': '{name}' is not the tensor that {tuned.source} replaces, of the base "
            f"'{tuned.base.name}'{done}"
        )


def _types() -> str:
    return ", ".join(DTYPES)


def read_tensor(shards: Shards, stored: StoredTensor) -> Tensor:
    """One tensor of a checkpoint, in memory of its own."""
    with open(shards.paths[stored.shard], "rb") as file:
        content = bytearray(os.pread(file.fileno(), stored.nbytes, stored.offset))
    return torch.frombuffer(content, dtype=DTYPES[stored.dtype]).reshape(stored.shape)


def _as(router: Router, stored: StoredTensor) -> Tensor:
    return torch.from_numpy(router.tuned).to(DTYPES[stored.dtype])


def _write(tuned: TunedRouters, shards: Shards, folder: Path) -> None:
    folder.mkdir()
    for path in files_beside_weights(shards.paths[0].parent):
        shutil.copyfile(path, folder / path.name)
    for number, path in enumerate(shards.paths):
        with open(path, "rb") as source, open(folder / path.name, "wb") as target:
            copy_range(source, 0, path.stat().st_size, target)
            patch(target, dict(_ranges(tuned.routers, shards, number)))
    if index := packed_index(str(folder)):
        _note_checksums(index, folder, [router.name for router in tuned.routers])
    _write_card(tuned, folder / CARD)


def _note_checksums(index: PackedIndex, folder: Path, names: Iterable[str]) -> None:
    """Puts the checksums of tensors that were replaced into what a packed model says of itself."""
    shards = find_shards(str(folder))
    places = {name: shards.tensors[name] for name in names}
    found = {name: checksum_of(chunks_of(shards.paths[each.shard], each)) for name, each in places.items()}
    (folder / INDEX).write_text(index._replace(others=index.others | found).text(), encoding="utf-8")


def _ranges(routers: Sequence[Router], shards: Shards, shard: int) -> Iterator[tuple[int, bytes]]:
    for router in routers:
        stored = shards.tensors[router.name]
        if stored.shard == shard:
            yield stored.offset, _as(router, stored).contiguous().view(torch.uint8).numpy().tobytes()


def _write_card(tuned: TunedRouters, path: Path) -> None:
    """Adds to the base's model card what was done."""
    before = path.read_text(encoding="utf-8").rstrip() + "\n\n" if path.exists() else ""
    path.write_text(
        f"{before}## Tuned routers\n\nThis is '{Path(tuned.base.name).name}' (fingerprint "
        f"{tuned.base.fingerprint}) with {len(tuned.routers)} tensors of its routers replaced by those of "
        f"`{tuned.source.name}`; every other byte of the weights is the base's. Made with `dwellmoe apply`; "
        "`dwellmoe export router` makes such a file.\n",
        encoding="utf-8",
    )
