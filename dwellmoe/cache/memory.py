"""How much memory a trace may take: reckoned from its header or rows, and checked before any is taken."""

import os
from pathlib import Path

from dwellmoe.errors import UserError

SHARE = 0.5  # of the memory that is free
MOST_EMPTY = 64  # slots of a trace for each one that a row of its file fills
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
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        return next(int(line.split()[1]) << 10 for line in lines if line.startswith("MemAvailable"))
    except (OSError, StopIteration):  # not Linux
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
