"""How far the kernel reads ahead in files of a disk. A file keeps what was set when it was opened."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def setting_of(path: Path) -> Path | None:
    """The file of the setting for the disk that holds `path`; None where it cannot be changed."""
    device = path.stat().st_dev
    block = Path(f"/sys/dev/block/{os.major(device)}:{os.minor(device)}").resolve()
    for folder in (block, block.parent):  # the disk itself, or the disk of a partition
        setting = folder / "queue" / "read_ahead_kb"
        if os.access(setting, os.W_OK):
            return setting
    return None


@contextmanager
def read_ahead(path: Path, kilobytes: int | None) -> Iterator[None]:
    """Files that are opened meanwhile on the disk of `path` are read ahead by so much; None: as it is set."""
    setting = setting_of(path)
    if kilobytes is None or setting is None:
        yield
        return
    before = setting.read_text()
    setting.write_text(str(kilobytes))
    try:
        yield
    finally:
        setting.write_text(before)
