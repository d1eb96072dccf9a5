"""Measures how much reading ahead delays the reads that a layer waits for.

    python benchmarks/urgent_reads.py --json FILE [--file FILE] [--record_mb 12.6] [--readers 4]

A layer waits for `--urgent` records at random places of a file, past the page cache, after a pause in which
it would compute; meanwhile readers have as much to read ahead as they can. Each row reads ahead in another
way: by how many readers at a time, in requests of how many bytes. `delay` is the mean time of the urgent
reads over that of the same reads with nothing to read ahead; all rows take turns, in one run.
"""

import argparse
import random
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from queue import SimpleQueue
from typing import Any, NamedTuple

import numpy as np
from result import parser_of, save_result

from dwellmoe.cache.flat_id import FlatId
from dwellmoe.errors import run_command
from dwellmoe.offload.io.memory import PAGE_BYTES, HostMemory, pages
from dwellmoe.offload.io.readers import Load, Readers
from dwellmoe.offload.io.storage import Span, Storage

MIB = 1 << 20


class Way(NamedTuple):
    """How readers read ahead."""

    readers: int
    request_bytes: int
    """0: nothing is read ahead."""


class Bench:
    """Records of one size at random places of one file."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args, self.draw = args, random.Random(0)
        self.record_bytes = pages(int(args.record_mb * 1e6))
        self.storage = Storage([args.file])
        self.pages = (args.file.stat().st_size - self.record_bytes) // PAGE_BYTES
        slots = args.urgent + args.ahead
        self.memory = [HostMemory(self.record_bytes).bytes for _ in range(slots)]

    def load(self, slot: int, arrivals: SimpleQueue) -> Load:
        offset = self.draw.randrange(self.pages) * PAGE_BYTES
        return Load(FlatId(slot), [Span(0, offset, self.record_bytes, self.memory[slot], 0)], arrivals)

    def seconds(self, way: Way) -> tuple[list[float], float]:
        """Seconds of each layer's urgent reads, and bytes that were read ahead a second."""
        args = self.args
        readers = Readers(self.storage, args.readers, way.readers, way.request_bytes or MIB)
        urgent_done, ahead_done = SimpleQueue(), SimpleQueue()
        found, ahead = [], {}
        began, ahead_bytes = time.perf_counter(), 0
        for _ in range(args.layers):
            while not ahead_done.empty():
                ahead_bytes += ahead.pop(ahead_done.get().flat_id).nbytes
            if way.request_bytes:
                free = [s for s in range(args.urgent, args.urgent + args.ahead) if s not in ahead]
                ahead |= {slot: self.load(slot, ahead_done) for slot in free}
                readers.submit([ahead[slot] for slot in free], urgent=False)
            time.sleep(args.compute_ms / 1e3)
            start = time.perf_counter()
            readers.submit([self.load(slot, urgent_done) for slot in range(args.urgent)])
            for _ in range(args.urgent):
                urgent_done.get()
            found.append(time.perf_counter() - start)
        seconds = time.perf_counter() - began
        readers.cancel(list(ahead.values()))
        readers.close()
        return found, ahead_bytes / seconds


def ways_of(args: argparse.Namespace) -> list[Way]:
    """As urgent loads are read first: by all readers, 4 MiB at a time; then in smaller requests, by fewer."""
    most, fewer, half = args.readers, max(1, args.readers - 1), max(1, args.readers // 2)
    large = [Way(most, 4 * MIB), Way(most, MIB), Way(fewer, 4 * MIB)]
    small = [Way(fewer, nbytes) for nbytes in (MIB, MIB // 2, MIB // 4)]
    return list(dict.fromkeys([*large, *small, Way(half, MIB), Way(1, MIB)]))


def rows_of(args: argparse.Namespace) -> list[dict[str, Any]]:
    bench, alone, ways = Bench(args), Way(1, 0), ways_of(args)
    times: dict[Way, list[float]] = {way: [] for way in (alone, *ways)}
    ahead: dict[Way, list[float]] = {way: [] for way in times}
    for _ in range(args.rounds):
        for way in times:
            seconds, ahead_rate = bench.seconds(way)
            times[way] += seconds
            ahead[way].append(ahead_rate)
    usual, middle = np.mean(times[alone]), np.median(times[alone])
    return [
        {
            "ahead_readers": way.readers if way.request_bytes else 0,
            "ahead_request_bytes": way.request_bytes,
            "urgent_ms": 1e3 * float(np.mean(times[way])),
            "urgent_p95_ms": 1e3 * float(np.percentile(times[way], 95)),
            "delay": float(np.mean(times[way]) / usual),
            "delay_of_medians": float(np.median(times[way]) / middle),
            "ahead_bytes_per_second": float(np.mean(ahead[way])),
        }
        for way in times
    ]


@contextmanager
def random_file(folder: Path, nbytes: int) -> Iterator[Path]:
    """A file of random bytes, which is removed again."""
    with tempfile.NamedTemporaryFile(dir=folder, suffix=".bin") as file:
        piece = np.random.default_rng(0).bytes(64 * MIB)
        for _ in range(max(1, nbytes // len(piece))):
            file.write(piece)
        file.flush()
        yield Path(file.name)


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("--file", type=Path, help="default: a temporary one of --file_gb in --folder")
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()))
    parser.add_argument("--file_gb", type=float, default=2.0)
    parser.add_argument("--record_mb", type=float, default=12.6)
    parser.add_argument("--urgent", type=int, default=4, help="records that a layer waits for")
    parser.add_argument("--ahead", type=int, default=4, help="records that are read ahead at a time")
    parser.add_argument("--readers", type=int, default=4)
    parser.add_argument("--compute_ms", type=float, default=5.0)
    parser.add_argument("--layers", type=int, default=4, help="in a round")
    parser.add_argument("--rounds", type=int, default=20)
    args = parser.parse_args()
    if args.file:
        rows = rows_of(args)
    else:
        with random_file(args.folder, int(args.file_gb * 1e9)) as args.file:
            rows = rows_of(args)
    settings = {name: str(value) if isinstance(value, Path) else value for name, value in vars(args).items()}
    save_result({"schema_version": 1, "settings": settings, "rows": rows}, args.json)


if __name__ == "__main__":
    run_command(main)
