"""Folders for what is made once and used by many tests; pytest deletes them with its others."""

from pathlib import Path
from tempfile import mkdtemp


class _Session:
    folder: Path | None = None


def begin_session(folder: Path) -> None:
    """Where `session_folder` makes its folders from now on."""
    _Session.folder = folder


def session_folder(name: str) -> Path:
    """A new, empty folder that lasts as long as the test run."""
    assert _Session.folder, "tests/conftest.py names the folder when the tests begin"
    return Path(mkdtemp(prefix=f"{name}-", dir=_Session.folder))
