"""The checkpoints in the folder of a training run: which are whole, and which one to go on from."""

import functools
import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryFile

from safetensors import SafetensorError

from dwellmoe.data.download import file_sha256
from dwellmoe.errors import UserError, first_line, refusal
from dwellmoe.files import replacing
from dwellmoe.log import warn_once
from dwellmoe.run_identity import RUN_FILE

CHECKSUMS = "checksums.json"
RESULTS = ("README.md", "adapter_config.json", "config.json", "tokenizer.json", "training_summary.json")
"""Files that a run ends with, and that may be of another run or of the user."""

_TORCH_WRITER = ("PytorchStreamWriter", "iostream", "unexpected pos")
"""Words in the bare RuntimeError that torch.save raises for a failed write."""


def make_run_folder(folder: Path, what: str) -> None:
    """Raises UserError, which begins with `what` and the folder, where nothing can be written: before hours
    of training end there.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise UserError(f"{what} {folder}: {error.strerror}") from None


def check_room(folder: Path, needed: Mapping[str, int]) -> None:
    """UserError where fewer bytes are free than `needed` altogether: what is written -> its bytes."""
    free_bytes = shutil.disk_usage(folder).free
    if sum(needed.values()) > free_bytes:
        sizes = ", ".join(f"{what} {nbytes / 2**20:.1f} MiB" for what, nbytes in needed.items() if nbytes)
        raise UserError(f"'{folder}': {free_bytes / 2**20:.1f} MiB are free, but needed are: {sizes}")


def complete_checkpoints(folder: Path) -> list[Path]:
    """Checkpoints in a training folder that were written to their end, oldest first.

    The Trainer writes its state last, so a readable one marks a whole checkpoint: after a kill or a
    full disk there is none.
    """
    return [path for path in _checkpoints(folder) if _has_state(path)]


def _checkpoints(folder: Path) -> list[Path]:
    """The folders that the Trainer names so; a copy that the user named `checkpoint-8-good` is none."""
    named = folder.glob("checkpoint-*")
    found = [path for path in named if path.name.removeprefix("checkpoint-").isdecimal() and path.is_dir()]
    return sorted(found, key=step_of)


def _finished_checkpoints(folder: Path) -> list[Path]:
    """Checkpoints that were written to their end, also if they were damaged later."""
    return [path for path in _checkpoints(folder) if _has_state(path) or (path / CHECKSUMS).exists()]


def step_of(checkpoint: Path) -> int:
    """The step after which a checkpoint was written."""
    return int(checkpoint.name.removeprefix("checkpoint-"))


def _has_state(folder: Path) -> bool:
    try:
        return json.loads((folder / "trainer_state.json").read_text())["global_step"] > 0
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        return False


def write_checksums(checkpoint: Path) -> None:
    """Notes the size and checksum of every file of a checkpoint that was just written."""
    files = [path for path in sorted(checkpoint.rglob("*")) if path.is_file() and path.name != CHECKSUMS]
    table = {str(path.relative_to(checkpoint)): [path.stat().st_size, file_sha256(path)] for path in files}
    with replacing(checkpoint / CHECKSUMS) as file:
        file.write((json.dumps(table, indent=1) + "\n").encode())


def damage(checkpoint: Path) -> str:
    """What is wrong with a checkpoint's files, compared with what was written; empty if nothing is known."""
    if not _has_state(checkpoint):
        return "trainer_state.json is missing or broken"
    try:
        table = json.loads((checkpoint / CHECKSUMS).read_text())
        faults = (_fault(checkpoint / name, *entry) for name, entry in table.items())
        return next(filter(None, faults), "")
    except FileNotFoundError:
        return f"{CHECKSUMS} is missing" if (checkpoint / RUN_FILE).exists() else ""
    except (OSError, ValueError, TypeError, AttributeError, RecursionError):
        return f"{CHECKSUMS} is broken"


def _fault(path: Path, size_bytes: int, checksum: str) -> str:
    if not path.is_file():
        return f"{path.name} is missing"
    if path.stat().st_size != size_bytes:
        return f"{path.name} has {path.stat().st_size} bytes, {size_bytes} were written"
    same = _checksum(path, path.stat().st_size, path.stat().st_mtime_ns) == checksum
    return "" if same else f"{path.name} is not as it was written"


@functools.cache
def _checksum(path: Path, _size_bytes: int, _modified_ns: int) -> str:
    """The checksum of a file, which is read once in a process unless it changes."""
    return file_sha256(path)


def check_steps_left(checkpoint: Path | None, max_steps: int) -> None:
    """UserError for a checkpoint that is at or beyond the last step."""
    if checkpoint and 0 < max_steps <= step_of(checkpoint):
        raise UserError(f"--max_steps {max_steps}: '{checkpoint}' is there: give more steps")


def whole_checkpoints(folder: Path) -> Iterator[Path]:
    """Checkpoints whose files are as they were written, newest first; why another is left out is said."""
    for path in reversed(_checkpoints(folder)):
        if fault := damage(path):
            warn_once(f"'{path}' is left out: {fault}")
        else:
            yield path


def checkpoint_to_resume(folder: Path, requested: str | None, overwrite: bool) -> Path | None:
    """The requested checkpoint (a path, or `auto` for the last whole one), or None for a new run.

    Raises UserError for one that is not there or damaged, and rather than mixing two runs in one folder or
    replacing what lies there.
    """
    found = _finished_checkpoints(folder)
    if requested and requested.lower() in ("auto", "true", "last"):
        whole = next(whole_checkpoints(folder), None)
        if found and whole is None:
            raise UserError(f"--resume_from_checkpoint {requested}: no checkpoint in '{folder}' is whole")
        if whole is None:
            _check_nothing_replaced(folder, overwrite)
        return whole
    if requested:
        same = [path for path in found if path.resolve() == Path(requested).resolve()]
        if not same:
            raise UserError(
                f"--resume_from_checkpoint {requested}: no complete checkpoint; there are {names_of(found)}"
            )
        if fault := damage(same[0]):
            raise UserError(f"--resume_from_checkpoint {requested}: {fault}; there are {names_of(found)}")
        return same[0]
    if found and not overwrite:
        raise UserError(
            f"'{folder}' holds {names_of(found)} of an earlier run: go on with --resume_from_checkpoint "
            "auto, start over with --overwrite_output, or choose another --lora_save_path"
        )
    _check_nothing_replaced(folder, overwrite)
    return None


def _check_nothing_replaced(folder: Path, overwrite: bool) -> None:
    """UserError for a folder without checkpoints that holds files which the end of a run would replace."""
    there = [name for name in RESULTS if (folder / name).exists()]
    if there and not overwrite:
        raise UserError(
            f"'{folder}' holds {', '.join(there)}, which this run would replace, and no checkpoint to go on "
            "from: choose another --lora_save_path, or replace them with --overwrite_output"
        )


def names_of(paths: list[Path]) -> str:
    """Names of checkpoints as messages list them."""
    return ", ".join(path.name for path in paths) or "none"


def remove_checkpoints(folder: Path) -> None:
    """Removes an earlier run's checkpoints; call it when nothing but training is left that could fail."""
    for old in _checkpoints(folder):
        if old.is_symlink():
            old.unlink()
        else:
            shutil.rmtree(old)


def _reason(error: Exception) -> str:
    """Why a write failed. torch tells where in its own code, but not what the system refused."""
    if isinstance(error, RuntimeError):
        return "the system took only a part of a file, as a full disk does"
    return refusal(error) or first_line(error)


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
            f"'{torn or run_folder}' cannot be written: {_reason(error)}; complete checkpoints: "
            f"{names_of(complete_checkpoints(run_folder))}; make room, then go on with "
            "--resume_from_checkpoint auto"
        ) from None
