"""Completes a saved model with what its base holds besides the part that was loaded.

Of some multimodal checkpoints only the text part is loaded, and transformers leaves out layers that predict
further tokens: a model saved from that part would have lost the rest.
"""

import shutil
from collections.abc import Mapping
from pathlib import Path

from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from dwellmoe.log import warn_once
from dwellmoe.offload.io.number_types import DTYPES
from dwellmoe.offload.io.shards import Shards, find_shards

INDEX = "model.safetensors.index.json"
SMALL_FILES = (".json", ".jinja", ".txt", ".model")
"""Endings of a checkpoint's small files: configurations, vocabulary, chat template."""


def complete_checkpoint(folder: Path, base_name: str, *, is_part: bool, keep_types: bool) -> None:
    """Makes the model in `folder` a whole checkpoint with the base's files and names: the tensors that it has
    as they are there, the base's own for the rest.

    is_part      it is the text part of a multimodal base: the configuration is the base's, too. Where its
                 tensors are not laid out as in the base, it stays the text part alone, which is said
    keep_types   give each tensor the number type that it has in the base
    """
    base, saved = find_shards(base_name), find_shards(str(folder))
    names = _names_in_base(saved, base)
    if names is None and is_part:
        warn_once(f"'{folder}': the text part alone, since '{base_name}' lays out its tensors in another way")
    if names is None or len(names) == len(base.tensors):
        return
    whole = folder / "whole"
    whole.mkdir()
    for shard, path in enumerate(base.paths):
        tensors = _tensors(base, shard, saved, names, keep_types)
        save_file(tensors, whole / path.name, metadata={"format": "pt"})
    for path in (*saved.paths, folder / INDEX):
        path.unlink(missing_ok=True)
    for path in whole.iterdir():
        path.rename(folder / path.name)
    whole.rmdir()
    for path in base.paths[0].parent.iterdir():
        if path.name == INDEX or (is_part and path.suffix in SMALL_FILES):
            shutil.copyfile(path, folder / path.name)


def _names_in_base(saved: Shards, base: Shards) -> dict[str, str] | None:
    """Name in the base -> saved name: the same, or all with one prefix before it (`language_model.`). None: a
    tensor is not in the base, or has another shape there.
    """
    first = next(iter(saved.tensors))
    prefixes = [name.removesuffix(first) for name in base.tensors if f".{name}".endswith(f".{first}")]
    for prefix in prefixes:
        pairs = {f"{prefix}{name}": name for name in saved.tensors}
        if all(
            name in base.tensors and base.tensors[name].shape == saved.tensors[own].shape
            for name, own in pairs.items()
        ):
            return pairs
    return None


def _tensors(
    base: Shards, shard: int, saved: Shards, names: Mapping[str, str], keep_types: bool
) -> dict[str, Tensor]:
    """The tensors of one of the base's files: saved ones where there are any."""
    tensors = {}
    with safe_open(base.paths[shard], framework="pt") as file:
        for name, stored in base.tensors.items():
            if stored.shard == shard and name in names:
                tensor = _read(saved, names[name])
                tensors[name] = tensor.to(DTYPES.get(stored.dtype, tensor.dtype)) if keep_types else tensor
            elif stored.shard == shard:
                tensors[name] = file.get_tensor(name)
    return tensors


def _read(shards: Shards, name: str) -> Tensor:
    with safe_open(shards.paths[shards.tensors[name].shard], framework="pt") as file:
        return file.get_tensor(name)
