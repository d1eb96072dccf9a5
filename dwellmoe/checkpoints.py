"""The checkpoints in the folder of a training run: which are whole, and which one to go on from."""

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryFile

from safetensors import SafetensorError

from dwellmoe.errors import UserError, first_line

_TORCH_WRITER = ("PytorchStreamWriter", "iostream", "unexpected pos")
"""Words in the bare RuntimeError that torch.save raises for a failed write."""


def make_run_folder(folder: Path) -> None:
    """Raises UserError where nothing can be written, before hours of training end there."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise UserError(f"--lora_save_path {folder}: {error.strerror}") from None


def complete_checkpoints(folder: Path) -> list[Path]:
    """Checkpoints in a training folder that were written to their end, oldest first.

    The Trainer writes its state last, so a readable one marks a whole checkpoint: after a kill or a
    full disk there is none.
    """
    found = [
        path for path in folder.glob("checkpoint-*") if path.name.split("-")[1].isdigit() and _has_state(path)
    ]
    return sorted(found, key=lambda path: int(path.name.split("-")[1]))


def _has_state(folder: Path) -> bool:
    try:
        return "global_step" in json.loads((folder / "trainer_state.json").read_text())
    except (OSError, ValueError):
        return False


def checkpoint_to_resume(folder: Path, requested: str | None, overwrite: bool) -> Path | None:
    """The requested checkpoint (a path, or `auto` for the last), or None for a new run.

    Raises UserError for one that is not there, and rather than mixing two runs in one folder.
    """
    found = complete_checkpoints(folder)
    if requested and requested.lower() in ("auto", "true", "last"):
        return found[-1] if found else None
    if requested:
        same = [path for path in found if path.resolve() == Path(requested).resolve()]
        if not same:
            raise UserError(
                f"--resume_from_checkpoint {requested}: no complete checkpoint; there are {_names(found)}"
            )
        return same[0]
    if found and not overwrite:
        raise UserError(
            f"'{folder}' holds {_names(found)} of an earlier run: go on with --resume_from_checkpoint "
            "auto, start over with --overwrite_output, or choose another --lora_save_path"
        )
    return None


def _names(paths: list[Path]) -> str:
    return ", ".join(path.name for path in paths) or "none"


def remove_checkpoints(folder: Path) -> None:
    """Removes an earlier run's checkpoints; call it when nothing but training is left that could fail."""
    for old in folder.glob("checkpoint-*"):
        shutil.rmtree(old)


@contextmanager
def checkpoints_kept(run_folder: Path, torn: Path | None = None) -> Iterator[None]:
    """A block that writes into the run's folder, with `torn` the checkpoint that it writes.

    If the write fails, `torn` is removed and a UserError names the checkpoints that are whole.
    """
    try:
        yield
    except (OSError, SafetensorError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and not any(text in str(error) for text in _TORCH_WRITER):
            raise
        if torn:
            shutil.rmtree(torn, ignore_errors=True)
        raise UserError(
            f"'{torn or run_folder}' cannot be written: {first_line(error)}; complete checkpoints: "
            f"{_names(complete_checkpoints(run_folder))}; make room, then go on with "
            "--resume_from_checkpoint auto"
        ) from None
