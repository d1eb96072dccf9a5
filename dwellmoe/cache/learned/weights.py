"""Files of learned weights, which name the policy and the layout of features that they were trained for."""

import functools
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np

from dwellmoe.cache.tensor_file import map_tensors, write_tensors
from dwellmoe.errors import UserError

FORMAT = "learned-eviction"
SHIPPED = Path(__file__).parent / "shipped"


def save_weights(path, policy: str, layout: str, tensors: dict[str, np.ndarray], facts: dict) -> None:
    """Writes float32 tensors, the order of features, and in `facts` what else serving must agree with."""
    metadata = {"format": FORMAT, "policy": policy, "layout": layout}
    metadata |= {name: str(value) for name, value in facts.items()}
    write_tensors(path, {name: value.astype(np.float32) for name, value in tensors.items()}, metadata)


@functools.cache
def load_weights(path: str, policy: str, layout: str) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """(tensors, facts) of a file, or of those shipped with the policy where `path` is empty.

    UserError for a file of another policy or with another layout of features.
    """
    file = Path(path) if path else SHIPPED / f"{policy}.safetensors"
    tensors, facts = map_tensors(file)
    for name, wanted in (("format", FORMAT), ("policy", policy), ("layout", layout)):
        if facts.get(name) != wanted:
            raise UserError(f"{file}: {name} must be '{wanted}', got '{facts.get(name)}'")
    with np.errstate(over="ignore"):
        found = {name: np.ascontiguousarray(value, np.float32) for name, value in tensors.items()}
    bad = [name for name, value in found.items() if not np.isfinite(value).all()]
    if bad:
        raise UserError(f"{file}: tensor '{bad[0]}' holds NaN, infinite or too large values")
    return found, facts


def fit_source(path: str, policy: str, layout: str) -> dict[str, str]:
    """What the weights of a file, or the shipped ones where `path` is empty, were fitted to."""
    _, facts = load_weights(path, policy, layout)
    own = {name: value for name, value in facts.items() if name not in ("format", "policy", "layout")}
    return {"file": path or "shipped with the policy", **own}


def check_shapes(
    path: str, tensors: dict[str, np.ndarray], shapes: Mapping[str, Sequence[int | str]]
) -> None:
    """UserError unless every tensor in `shapes` is there as described: a number is a size, a letter stands
    for any size above 0, which is the same wherever it appears.
    """
    sizes: dict[int | str, int] = {}
    for name, shape in shapes.items():
        found = tensors[name].shape if name in tensors else None
        if found is None or len(found) != len(shape) or 0 in found:
            raise UserError(f"{path}: tensor '{name}' {_described(shape)} needed, found {found}")
        for letter, size in zip(shape, found, strict=True):
            if size != (letter if isinstance(letter, int) else sizes.setdefault(letter, size)):
                raise UserError(
                    f"{path}: tensor '{name}' {_described(sizes.get(part, part) for part in shape)} needed, "
                    f"found {found}"
                )


def _described(shape: Iterable[int | str]) -> str:
    return f"[{', '.join(map(str, shape))}]"


def depths(layers: int, trained: int) -> np.ndarray:
    """int64 [layers]: for each layer the trained one at the same depth, where a model has more or fewer."""
    return np.arange(layers) * trained // layers
