"""Bytes that the kernel read from disk for this process; of the standard library alone."""

from pathlib import Path


def read_bytes() -> int:
    """So far, page faults of mapped files included."""
    counts = dict(line.split(": ") for line in Path("/proc/self/io").read_text().splitlines())
    return int(counts["read_bytes"])
