"""What an evaluation has measured so far, a file a batch, so that one that was stopped can go on.

The files lie in the folder of the results until the report is written. They belong to one model, its
adapters, requests and settings: others have a folder of their own.
"""

import hashlib
import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass, fields, is_dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from dwellmoe.cache.tensor_file import map_tensors, write_tensors
from dwellmoe.errors import UserError
from dwellmoe.log import warn_once

Result = TypeVar("Result")
PREFIX = "unfinished-"
SUFFIX = ".safetensors"
CLASSES = {
    "RoutingTrace": "dwellmoe.cache.trace",
    "ChoiceScore": "dwellmoe.evaluation.answers.choices",
    "Answer": "dwellmoe.evaluation.generation",
    "Timing": "dwellmoe.evaluation.generation",
    "_ScoredBatch": "dwellmoe.evaluation.measure",
    "_GeneratedBatch": "dwellmoe.evaluation.measure",
    "_FreeBatch": "dwellmoe.evaluation.measure",
    "FreeText": "dwellmoe.evaluation.free_running",
    "GateSums": "dwellmoe.evaluation.recording",
    "Recording": "dwellmoe.evaluation.recording",
    "Score": "dwellmoe.evaluation.teacher_forced",
}
"""Class -> module of everything that a measurement is made of; a file can name no other."""


def to_json(value: Any, arrays: dict[str, np.ndarray]) -> Any:
    """The value as JSON: arrays go to `arrays` and leave their name, other things a pair of kind and content.

    Raises TypeError for what is no part of a measurement.
    """
    if isinstance(value, np.generic):
        return to_json(value.item(), arrays)
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, np.ndarray):
        arrays[name := f"array-{len(arrays)}"] = value
        return ["array", name]
    if isinstance(value, dict):
        return ["dict", [[to_json(key, arrays), to_json(each, arrays)] for key, each in value.items()]]
    kind = type(value).__name__
    if kind in CLASSES:
        names = [field.name for field in fields(value)] if is_dataclass(value) else value._fields
        return [kind, {name: to_json(getattr(value, name), arrays) for name in names}]
    if isinstance(value, list | tuple):
        return [kind, [to_json(each, arrays) for each in value]]
    raise TypeError(f"{kind} is no part of a measurement")


def from_json(value: Any, arrays: dict[str, np.ndarray]) -> Any:
    """The value that `to_json` took apart."""
    if not isinstance(value, list):
        return value
    kind, content = value
    if kind == "array":
        return arrays[content]
    if kind == "dict":
        return {from_json(key, arrays): from_json(each, arrays) for key, each in content}
    if kind in ("list", "tuple"):
        return {"list": list, "tuple": tuple}[kind](from_json(each, arrays) for each in content)
    made_of = {name: from_json(each, arrays) for name, each in content.items()}
    return getattr(import_module(CLASSES[kind]), kind)(**made_of)


def _checksum(value: str, arrays: dict[str, np.ndarray]) -> str:
    found = hashlib.sha256(value.encode())
    for name in sorted(arrays):
        found.update(np.ascontiguousarray(arrays[name]).data)
    return found.hexdigest()


@dataclass(frozen=True)
class KeptBatches:
    """The files of one evaluation. With `resume` what they hold is not measured again."""

    folder: Path
    resume: bool = False

    def get(self, name: str) -> Any:
        """What was kept by that name; None where nothing was, or not with `resume`, or it is damaged."""
        path = self._path(name)
        if not self.resume or not path.is_file():
            return None
        try:
            arrays, metadata = map_tensors(path)
            if metadata["checksum"] == _checksum(metadata["value"], arrays):
                return from_json(json.loads(metadata["value"]), arrays)
        except (UserError, OSError, ValueError, TypeError, LookupError, AttributeError, RecursionError):
            pass
        warn_once(f"'{path}' is damaged: its batch is measured again")
        return None

    def keep(self, name: str, result: Any) -> None:
        """Keeps a result. Raises UserError where it cannot be written."""
        arrays: dict[str, np.ndarray] = {}
        value = json.dumps(to_json(result, arrays))
        write_tensors(self._path(name), arrays, {"value": value, "checksum": _checksum(value, arrays)})

    def get_or(self, name: str, measure: Callable[[], Result]) -> Result:
        """What was kept by that name, or what `measure` gives, which is then kept."""
        found = self.get(name)
        if found is None:
            found = measure()
            self.keep(name, found)
        return found

    def count(self) -> int:
        """How many results there are."""
        return sum(1 for _ in self.folder.glob(f"*{SUFFIX}"))

    def make_folder(self) -> None:
        """Raises UserError where nothing can be written."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"folder '{self.folder}': {error.strerror}") from None

    def remove(self) -> None:
        """Removes the files, when they are no longer needed."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _path(self, name: str) -> Path:
        return self.folder / f"{name}{SUFFIX}"
