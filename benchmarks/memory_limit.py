"""A limit on the memory of a process, its page cache included, set from outside by a memory cgroup."""

import os
from pathlib import Path
from typing import NamedTuple

ENTER = 'echo $$ > "$0" && exec "$@"'
"""For a shell: goes into the cgroup whose file is its first word, then becomes the command of the others."""


class Controller(NamedTuple):
    """The files of a version of the kernel's interface."""

    folder: Path
    limit: str
    swap_limit: str
    swap: str
    """What the limit of swap is set to; `` for the memory limit itself."""
    peak: str


VERSIONS = (
    Controller(
        Path("/sys/fs/cgroup/memory"),
        "memory.limit_in_bytes",
        "memory.memsw.limit_in_bytes",
        "",
        "memory.max_usage_in_bytes",
    ),
    Controller(Path("/sys/fs/cgroup"), "memory.max", "memory.swap.max", "0", "memory.peak"),
)


def find_controller() -> Controller | None:
    """The one that this machine has; None where no limit can be set, as for a user other than root."""
    for found in VERSIONS:
        probe = found.folder / f"dwellmoe-probe-{os.getpid()}"
        try:
            _switch_on(found)
            probe.mkdir()
        except OSError:
            continue
        has_limit = (probe / found.limit).is_file()
        probe.rmdir()
        if has_limit:
            return found
    return None


def _switch_on(found: Controller) -> None:
    """In version 2 a folder's children have limits of memory only where it says so."""
    switch = found.folder / "cgroup.subtree_control"
    if switch.is_file() and "memory" not in switch.read_text().split():
        switch.write_text("+memory")


class MemoryLimit:
    """A cgroup of its own with a limit; a `with` block removes it, after its processes have ended."""

    def __init__(self, controller: Controller, name: str, limit_bytes: int) -> None:
        self.controller, self.limit_bytes = controller, limit_bytes
        self.folder = controller.folder / f"dwellmoe-{name}-{os.getpid()}"

    def __enter__(self) -> "MemoryLimit":
        self.folder.mkdir()
        (self.folder / self.controller.limit).write_text(str(self.limit_bytes))
        swap_limit = self.folder / self.controller.swap_limit
        if swap_limit.is_file():
            swap_limit.write_text(self.controller.swap or str(self.limit_bytes))
        return self

    def __exit__(self, *exception) -> None:
        self.folder.rmdir()

    def around(self, command: list[str]) -> list[str]:
        """The same command, for a process that has no more memory than the limit."""
        return ["sh", "-c", ENTER, str(self.folder / "cgroup.procs"), *command]

    @property
    def peak_bytes(self) -> int:
        """The most that was charged to it, page cache included."""
        return int((self.folder / self.controller.peak).read_text())


def drop_page_cache(paths: list[Path]) -> None:
    """What the cache holds of files belongs to whoever read them first, and counts in no other's limit."""
    os.sync()
    for path in paths:
        handle = os.open(path, os.O_RDONLY)
        os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(handle)
