"""What an evaluation has measured so far, a file a batch, so that one that was stopped can go on.

The files lie in the folder of the results until the report is written. They belong to one model, its
adapters, requests and settings: others have a folder of their own.
"""

import io
import pickle
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from dwellmoe.errors import UserError
from dwellmoe.files import replacing

Result = TypeVar("Result")
PREFIX = "unfinished-"
NUMPY = {
    ("numpy", "ndarray"),
    ("numpy", "dtype"),
    ("numpy._core.multiarray", "_reconstruct"),
    ("numpy._core.multiarray", "scalar"),
    ("numpy._core.numeric", "_frombuffer"),
}
OWN = {
    "dwellmoe.cache.trace": {"RoutingTrace"},
    "dwellmoe.evaluation.answers.choices": {"ChoiceScore"},
    "dwellmoe.evaluation.generation": {"Answer", "Timing"},
    "dwellmoe.evaluation.measure": {"_ScoredBatch", "_GeneratedBatch"},
    "dwellmoe.evaluation.recording": {"GateSums", "Recording"},
    "dwellmoe.evaluation.teacher_forced": {"Score"},
}
"""Module -> classes whose instances a file may hold; reading one can run nothing else."""


class _Reader(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if name in OWN.get(module, ()) or (module, name) in NUMPY:
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"{module}.{name} is no part of a measurement")


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
            return _Reader(io.BytesIO(path.read_bytes())).load()
        except (OSError, ValueError, TypeError, pickle.UnpicklingError, EOFError, AttributeError, IndexError):
            return None

    def keep(self, name: str, result: Any) -> None:
        """Keeps a result. Raises UserError where it cannot be written."""
        with replacing(self._path(name)) as file:
            pickle.dump(result, file, protocol=5)

    def get_or(self, name: str, measure: Callable[[], Result]) -> Result:
        """What was kept by that name, or what `measure` gives, which is then kept."""
        found = self.get(name)
        if found is None:
            found = measure()
            self.keep(name, found)
        return found

    def count(self) -> int:
        """How many results there are."""
        return sum(1 for _ in self.folder.glob("*.pickle"))

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
        return self.folder / f"{name}.pickle"
