"""One writer a folder: a lock with the owner's process in it.

The kernel releases the lock when its process ends, however it ends.
"""

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path

from filelock import FileLock, Timeout

from dwellmoe.errors import UserError
from dwellmoe.files import remove_unfinished
from dwellmoe.log import warn_once

LOCK_NAME = ".writer.lock"


@contextmanager
def only_writer(folder: Path, advice: str = "choose another folder") -> Iterator[None]:
    """A block that alone writes into `folder`, which is made if it is missing.

    Raises UserError, with the process that writes there, or with what the system refuses. What a killed
    process left is taken over, and said.
    """
    path = folder / LOCK_NAME
    lock = FileLock(path)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if path.exists() and not path.is_file():  # a pipe would be read for ever
            raise UserError(f"'{path}' is no regular file: remove it")
        lock.acquire(blocking=False)
    except Timeout:
        owner = _owner(path) or "another process"
        raise UserError(f"'{folder}' is being written by {owner}: wait until it ends, or {advice}") from None
    except OSError as error:
        raise UserError(f"'{folder}' cannot be written: {error.strerror}") from None
    try:
        if left := _owner(path):
            warn_once(f"'{folder}': taken over from {left}, which ended without finishing")
        path.write_text(_this_process())
        remove_unfinished(folder)
        yield
    finally:
        path.unlink(missing_ok=True)
        lock.release()


def _owner(path: Path) -> str:
    """The process that took the lock last; empty if it ended well. The file may hold anything."""
    try:
        text = path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""
    is_record = text.startswith("process ") and len(text.splitlines()) == 1
    return text if is_record or not text else "an unknown process"


def _this_process() -> str:
    return f"process {os.getpid()} on {socket.gethostname()}, since {datetime.now():%Y-%m-%d %H:%M:%S}"
