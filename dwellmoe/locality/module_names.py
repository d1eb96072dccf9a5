"""Finds a name of `--target_modules` that no module of a model can have, without torch and before it loads.

A module's name stands in transformers' source of the model, or in the checkpoint's files: a name that stands
in neither is a slip. Which of the others a MoE layer has is known once the model is loaded
(`families/lora_targets.py`).
"""

import importlib.util
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from dwellmoe.errors import unknown_name

OWN_NAMES = ("attention", "auto", "down_proj", "gate", "gate_proj", "gate_up_proj", "up_proj")
"""Names with a meaning in every model."""
TARGETS = "--target_modules"
_BLOCK = re.compile(r"self\.(\w+) = \w+M(?:oE|oe|lp|LP)\w*\(")
_MODULE = re.compile(r"self\.(\w+) = nn\.(?:Linear|Parameter)\(")
_ANOTHER = re.compile(r"from \.\.(\w+)\.modeling_")


def check_module_names(
    names: Iterable[str], config: dict[str, Any], tensors: Iterable[str], option: str = TARGETS
) -> None:
    """Raises UserError for a name that stands nowhere; `tensors`: the names of the checkpoint's tensors.

    Checks nothing for a model whose source is not transformers'.
    """
    wanted = set(names) - {*OWN_NAMES}
    if not wanted or (source := _source(config)) is None:
        return
    known = {part for tensor in tensors for part in tensor.split(".")} | {*re.findall(r"\w+", source)}
    for name in sorted(wanted - known):
        choices = {*OWN_NAMES, *_MODULE.findall(source)} if option == TARGETS else {*_BLOCK.findall(source)}
        raise unknown_name(f"module of {option}", name, choices)


def _source(config: dict[str, Any]) -> str | None:
    """transformers' source of the model; None where a part of it is code from elsewhere."""
    found = importlib.util.find_spec("transformers")
    if found is None or not found.submodule_search_locations or "auto_map" in config:
        return None
    models = Path(found.submodule_search_locations[0], "models")
    texts: dict[str, str] = {}
    open_types = [kind.replace("-", "_") for kind in _types(config)]
    while open_types:
        kind = open_types.pop()
        folder = models / kind if (models / kind).is_dir() else models / kind.removesuffix("_text")
        files = sorted(folder.glob("modeling_*.py"))
        if not files:
            return None
        texts[kind] = "".join(path.read_text(encoding="utf-8") for path in files)
        open_types += {*_ANOTHER.findall(texts[kind])} - {*texts}
    return "".join(texts.values()) or None


def _types(config: Any) -> Iterator[str]:
    """The `model_type` of a configuration and of its parts."""
    if isinstance(config, dict):
        if isinstance(kind := config.get("model_type"), str):
            yield kind
        for value in config.values():
            yield from _types(value)
