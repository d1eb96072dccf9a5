"""How much memory a trace may take: reckoned from its header or rows, and checked before any is taken."""

import os
import sys
from collections.abc import Iterator
from pathlib import Path

from dwellmoe.errors import UserError

SHARE = 0.5  # of the memory that is free
MOST_EMPTY = 64  # slots of a trace for each one that a row of its file fills
CGROUPS, CGROUP_LIST = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")
STATE_BYTES = 64  # of a simulated cache, for each expert of each layer


def check_memory(needed_bytes: float, what: str) -> None:
    """UserError where `what` needs more than half of the memory that is free."""
    most = SHARE * _free_bytes()
    if needed_bytes > most:
        raise UserError(
            f"{what} would take {needed_bytes / 1e9:.1f} GB of memory: at most {most / 1e9:.1f} GB, "
            "half of what is free, may be used"
        )


def check_filled(path: Path, shape: tuple[int, int, int], rows: int) -> None:
    """UserError where a file of `rows` rows, one for each chosen expert, describes a trace [steps, layers,
    top_k] that is nearly empty or does not fit into memory.
    """
    steps, layers, top_k = shape
    if steps * layers * top_k > MOST_EMPTY * rows:
        raise UserError(
            f"{path}: {rows} rows cannot be {steps} token steps x {layers} layers x {top_k} experts chosen: "
            f"expected a row for each expert chosen, at least 1 for every {MOST_EMPTY} slots"
        )
    check_memory(4 * steps * layers * top_k, f"{path}: a trace of {steps} x {layers} x {top_k}")


def _free_bytes() -> int:
    """Memory that the machine and each control group of this process, as a container is one, have left."""
    return min([_machine_free_bytes(), *map(_group_free_bytes, _groups())])


def _machine_free_bytes() -> int:
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        return next(int(line.split()[1]) << 10 for line in lines if line.startswith("MemAvailable"))
    except (OSError, StopIteration):  # not Linux
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _groups() -> Iterator[Path]:
    """Folders of the control groups of this process and of those around them, in versions 1 and 2."""
    try:
        lines = CGROUP_LIST.read_text().splitlines()
    except OSError:  # not Linux
        return
    for controllers, path in (line.split(":", 2)[1:] for line in lines):
        if controllers == "" or "memory" in controllers.split(","):
            root = CGROUPS / "memory" if controllers else CGROUPS
            group = root / path.lstrip("/")
            yield from (folder for folder in (group, *group.parents) if folder.is_relative_to(root))


def _group_free_bytes(group: Path) -> int:
    """What a control group's limit leaves, files that the system keeps in memory not counted as taken."""
    names = (
        ("memory.max", "memory.current", "file"),
        ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_cache"),
    )
    for limit, usage, cached in names:
        try:
            most, used = (int((group / name).read_text()) for name in (limit, usage))
            statistics = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
        except (OSError, ValueError):  # another version, or a limit of "max"
            continue
        return most - used + int(statistics.get(cached, 0))
    return sys.maxsize
