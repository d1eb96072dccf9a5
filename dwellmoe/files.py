"""Files and folders that appear whole or not at all, and the project's own data files.

What is written has another name in the same folder until it is whole; then it is renamed.
"""

import itertools
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from dwellmoe.errors import UserError, first_line

_PACKAGE = Path(__file__).resolve().parent
_MOST_LINKS = 40
"""As many links as Linux follows."""
_POINTER = b"version https://git-lfs.github.com/spec/"
_UNFINISHED = ".unfinished-"
_LONGEST_POINTER_BYTES = 1024
LONGEST_NAME_BYTES = 150
"""A file's name has at most 255 bytes, and others are made of it: with a split, a checksum, an ending."""


def data_file(name: str) -> Path:
    """A file or folder that comes with the project, such as `datasets` or `configs/devices`.

    In a checkout it lies beside the package, in an installed package inside it.
    """
    beside = _PACKAGE.parent / name
    return beside if (_PACKAGE.parent / "pyproject.toml").is_file() else _PACKAGE / "shipped" / name


def is_missing_folder(name: str) -> bool:
    """Whether a name can only be that of a folder, and there is none. A name on the Hugging Face hub has at
    most one slash, and no dot before it.
    """
    looks_local = name.startswith((".", "/", "~", "models/")) or name.count("/") > 1
    return looks_local and not Path(name).is_dir()


def find_file(path: str | os.PathLike) -> Path:
    """The file of that path or, if there is none, the project's own of that name, as `data_file` finds it."""
    own = data_file(os.fspath(path))
    return own if own.is_file() and not Path(path).exists() else Path(path)


@contextmanager
def replacing(path: str | os.PathLike) -> Iterator[BinaryIO]:
    """A file that takes the place of `path` only when the block ends well: no reader ever sees half of it.

    Devices, pipes and open streams (/dev/stdout) are written to: nothing may take their place. Of a link, the
    file that it leads to is replaced.
    """
    check_writable(path)
    target = Path(os.path.realpath(path))
    with writing(Path(path)):
        if (stream := _stream_of(path)) is not None:
            sys.stdout.flush()
            with open(os.dup(stream), "wb") as file:
                yield file
        elif target.exists() and not target.is_file():
            with open(target, "wb") as file:
                yield file
        else:
            with _beside(target) as file:
                yield file


@contextmanager
def _beside(target: Path) -> Iterator[BinaryIO]:
    """A file in the same folder, with the same permissions, which takes the place of `target` at the end."""
    part = target.with_name(f".{target.name[:40]}.{os.getpid()}-{next(_part_numbers)}.part")
    try:
        with open(part, "wb") as file:
            yield file
        if target.exists():
            shutil.copymode(target, part)
        os.replace(part, target)
    finally:
        with suppress(OSError):
            part.unlink(missing_ok=True)


_part_numbers = itertools.count()


def _stream_of(path: str | os.PathLike) -> int | None:
    """The number of the open stream that a path such as /dev/stdout or /dev/fd/63 leads to, else None."""
    link = Path(path)
    for _ in range(_MOST_LINKS):
        folder = os.path.realpath(link.parent)
        if folder == f"/proc/{os.getpid()}/fd" and link.name.isdigit():
            return int(link.name)
        if not os.path.islink(link):
            break
        link = Path(folder, os.readlink(link))
    return None


@contextmanager
def replacing_path(target: Path) -> Iterator[Path]:
    """A path beside `target` at which the block makes a file or a folder, which then takes the place of
    `target`; after an error `target` is as it was.

    Only one process at a time may do so for one target: what a killed one left is removed first.
    """
    target = Path(os.path.realpath(target))  # a link stays, what it leads to is replaced
    target.parent.mkdir(parents=True, exist_ok=True)
    beside = target.with_name(f".{target.name}.part")
    _remove(beside)
    try:
        yield beside
        if target.is_dir():  # a folder cannot be renamed onto one that holds files
            shutil.rmtree(target)
        os.replace(beside, target)
    finally:
        _remove(beside)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turns what the system refuses into a UserError with the path; that a reader left is no mistake."""
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        raise UserError(f"{path}: cannot be written: {error.strerror or first_line(error)}") from error


def check_writable(path: str | os.PathLike) -> None:
    """UserError if a file of that name could not be written: better before long work than after it."""
    text = os.fspath(path)
    if not text or text.endswith("/"):
        raise UserError(f"'{text}': cannot be written: not the name of a file")
    if _stream_of(path) is not None:
        return
    with writing(Path(text)):
        exists = _exists(path)
    folder = Path(os.path.realpath(path)).parent
    if Path(text).is_dir():
        raise UserError(f"'{text}': cannot be written: not the name of a file")
    if exists and not os.access(text, os.W_OK):
        raise UserError(f"{text}: cannot be written: no permission")
    if exists and not Path(text).is_file():
        return  # a device or a pipe, which needs no folder
    if not folder.is_dir():
        raise UserError(f"{text}: cannot be written: there is no folder '{folder}'")
    if not os.access(folder, os.W_OK):
        raise UserError(f"{text}: cannot be written: no permission in '{folder}'")


def check_new_folder(path: str) -> None:
    """UserError for `--out` if a folder of that name could not be made, or holds something already."""
    folder = Path(path)
    if not path or (os.path.lexists(path) and not folder.is_dir()):
        raise UserError(f"--out '{path}': not the name of a folder")
    if folder.is_dir() and any(folder.iterdir()):
        raise UserError(f"--out '{path}': the folder is not empty: choose another, or remove it")
    parent = next(each for each in (folder, *folder.absolute().parents) if each.exists())
    if not parent.is_dir() or not os.access(parent, os.W_OK):
        raise UserError(f"--out '{path}': cannot be written: no permission in '{parent}'")


def _exists(path: str | os.PathLike) -> bool:
    """Whether a file is there. OSError for a path that cannot be, such as a loop of links."""
    try:
        os.stat(path)
    except FileNotFoundError:
        return False
    return True


def remove_unfinished(target: Path) -> None:
    """Removes what `written_whole` left in a folder when it was killed. Only for who alone writes there."""
    for left in target.glob(f"{_UNFINISHED}*"):
        shutil.rmtree(left, ignore_errors=True)


@contextmanager
def written_whole(target: Path, last: str = "") -> Iterator[Path]:
    """A folder to write files in; when the block ends well they move to `target`, the one named `last` last.

    After an error or a kill `target` is as it was. Raises UserError where nothing can be written.
    """
    try:
        target.mkdir(parents=True, exist_ok=True)
        beside = Path(tempfile.mkdtemp(prefix=_UNFINISHED, dir=target))
    except OSError as error:
        raise UserError(f"folder '{target}': {error.strerror}") from None
    try:
        yield beside
        for file in sorted(beside.iterdir(), key=lambda file: file.name == last):
            os.replace(file, target / file.name)
    except OSError as error:
        raise UserError(f"folder '{target}': {error.strerror or error}") from None
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def check_name(name: str, where: str) -> None:
    """UserError if a name cannot be (part of) the name of a file: it would name another folder, or no file.

    `where` says in the message what has the name.
    """
    if name.strip() in ("", ".", "..") or not name.isprintable() or "/" in name or "\\" in name:
        raise UserError(f"{where} must be the name of a file, without / or \\, found {name!r:.60}")
    if len(name.encode()) > LONGEST_NAME_BYTES:
        raise UserError(f"{where} must be at most {LONGEST_NAME_BYTES} bytes long, found {name!r:.60}")


def check_no_pointers(folder: Path) -> None:
    """UserError for a folder in which Git left a pointer in place of a large file that it did not fetch."""
    for path in sorted(folder.iterdir()):
        with suppress(OSError):  # whoever needs the file says that it cannot be read
            if path.is_file() and path.stat().st_size < _LONGEST_POINTER_BYTES:
                with path.open("rb") as file:
                    if file.read(len(_POINTER)) == _POINTER:
                        raise UserError(f"{path}: a pointer of Git LFS: git lfs pull fetches the file itself")


def give_usual_modes(folder: Path) -> None:
    """Gives the files below a folder the permissions of any new file: libraries write some for the owner
    alone.
    """
    mask = os.umask(0)
    os.umask(mask)
    for path in folder.rglob("*"):
        path.chmod((0o777 if path.is_dir() else 0o666) & ~mask)
