"""Measures whether io_uring, or more reader threads, read a disk faster than a few threads do.

    python benchmarks/read_queues.py --json FILE [--file FILE] [--request_kb 128 4096] [--depths 4 16]

Requests begin at random pages of one file and go past the page cache. `threads`: that many threads, each with
one request at a time, as the engine reads. `io_uring`: one thread that keeps that many requests in a ring of
the Linux kernel, by its system calls, so that nothing has to be installed. Bytes a second, the median of the
rounds; all ways take turns in one run.
"""

import ctypes
import mmap
import os
import random
import struct
import threading
import time
from pathlib import Path
from tempfile import gettempdir
from typing import Any

import numpy as np
from result import parser_of, save_result
from urgent_reads import random_file

from dwellmoe.errors import UserError, run_command
from dwellmoe.offload.io.memory import PAGE_BYTES, HostMemory

SETUP, ENTER = 425, 426
"""System calls of Linux."""
SUBMISSIONS, ENTRIES = 0, 0x10000000
"""What of a ring is mapped: its queues, and the entries of the submission queue."""
ONE_MAPPING, WAIT, READ = 1, 1, 22
LIBC = ctypes.CDLL(None, use_errno=True)


def checked(result: int) -> int:
    if result < 0:
        raise UserError(f"io_uring: {os.strerror(ctypes.get_errno())}")
    return result


class Ring:
    """Reads of one file in a ring of `depth` requests (io_uring_setup(2), io_uring_enter(2))."""

    def __init__(self, depth: int) -> None:
        parameters = bytearray(120)
        pointer = (ctypes.c_char * len(parameters)).from_buffer(parameters)
        self.ring = checked(LIBC.syscall(SETUP, depth, pointer))
        fields = struct.unpack("<10I 8IQ 8IQ", parameters)
        assert fields[5] & ONE_MAPPING
        self.entries = fields[0]
        sent, done = fields[10:18], fields[19:27]
        nbytes = max(sent[6] + 4 * fields[0], done[5] + 16 * fields[1])
        self.queues = np.frombuffer(mmap.mmap(self.ring, nbytes, offset=SUBMISSIONS), np.uint8)
        self.slots = np.frombuffer(mmap.mmap(self.ring, 64 * self.entries, offset=ENTRIES), np.uint8)
        self.tail, self.array = self._numbers(sent[1], 1), self._numbers(sent[6], self.entries)
        self.done_head, self.done_tail = self._numbers(done[0], 1), self._numbers(done[1], 1)
        completion = np.dtype([("data", "<u8"), ("result", "<i4"), ("flags", "<u4")])
        self.done = self.queues[done[5] : done[5] + 16 * fields[1]].view(completion)
        self.waiting = 0

    def _numbers(self, offset: int, count: int) -> np.ndarray:
        return self.queues[offset : offset + 4 * count].view(np.uint32)

    def read(self, slot: int, file: int, offset: int, address: int, nbytes: int) -> None:
        """Puts a request into the queue; `slot` is its name."""
        entry = struct.pack("<BBHiQQIIQ24x", READ, 0, 0, file, offset, address, nbytes, 0, slot)
        self.slots[64 * slot : 64 * slot + 64] = np.frombuffer(entry, np.uint8)
        tail = int(self.tail[0])
        self.array[tail % self.entries] = slot
        self.tail[0] = tail + 1
        self.waiting += 1

    def wait(self) -> list[tuple[int, int]]:
        """Submits what is queued and waits for at least one request; slots and results of those done."""
        checked(LIBC.syscall(ENTER, self.ring, self.waiting, 1, WAIT, None, 0))
        self.waiting = 0
        head, tail = int(self.done_head[0]), int(self.done_tail[0])
        found = [self.done[i % len(self.done)] for i in range(head, tail)]
        pairs = [(int(each["data"]), int(each["result"])) for each in found]
        self.done_head[0] = tail
        return pairs

    def close(self) -> None:
        os.close(self.ring)


def by_ring(file: int, pages: int, nbytes: int, depth: int, seconds: float) -> float:
    ring, draw, total = Ring(depth), random.Random(depth), 0
    memory = [HostMemory(nbytes).bytes for _ in range(depth)]
    running = set()

    def begin(slot: int) -> None:
        ring.read(slot, file, draw.randrange(pages) * PAGE_BYTES, memory[slot].ctypes.data, nbytes)
        running.add(slot)

    start = time.perf_counter()
    for slot in range(depth):
        begin(slot)
    while running:
        for slot, result in ring.wait():
            if result < 0:
                raise UserError(f"io_uring: {os.strerror(-result)}")
            running.discard(slot)
            total += result
            if time.perf_counter() - start < seconds:
                begin(slot)
    elapsed = time.perf_counter() - start
    ring.close()
    return total / elapsed


def by_threads(file: int, pages: int, nbytes: int, depth: int, seconds: float) -> float:
    totals, start = [0] * depth, time.perf_counter()

    def read(reader: int) -> None:
        memory, draw = HostMemory(nbytes).bytes[:nbytes].data, random.Random(depth * 100 + reader)
        while time.perf_counter() - start < seconds:
            totals[reader] += os.preadv(file, [memory], draw.randrange(pages) * PAGE_BYTES)

    threads = [threading.Thread(target=read, args=(reader,)) for reader in range(depth)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sum(totals) / (time.perf_counter() - start)


WAYS = {"threads": by_threads, "io_uring": by_ring}


def rows_of(args: Any, path: Path) -> list[dict[str, Any]]:
    file = os.open(path, os.O_RDONLY | os.O_DIRECT)
    cases = [(kb, depth, way) for kb in args.request_kb for depth in args.depths for way in WAYS]
    rates: dict[tuple, list[float]] = {case: [] for case in cases}
    for _ in range(args.rounds):
        for kb, depth, way in cases:
            pages = (os.fstat(file).st_size - kb * 1024) // PAGE_BYTES
            rates[kb, depth, way].append(WAYS[way](file, pages, kb * 1024, depth, args.seconds))
    os.close(file)
    middle = {case: float(np.median(rates[case])) for case in cases}
    return [
        {
            "request_bytes": kb * 1024,
            "depth": depth,
            **{way: middle[kb, depth, way] for way in WAYS},
            "io_uring_over_threads": middle[kb, depth, "io_uring"] / middle[kb, depth, "threads"],
        }
        for kb in args.request_kb
        for depth in args.depths
    ]


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("--file", type=Path, help="default: a temporary one of --file_gb in --folder")
    parser.add_argument("--folder", type=Path, default=Path(gettempdir()))
    parser.add_argument("--file_gb", type=float, default=2.0)
    parser.add_argument("--request_kb", nargs="+", type=int, default=[128, 512, 1024, 4096])
    parser.add_argument("--depths", nargs="+", type=int, default=[2, 4, 8, 16, 32])
    parser.add_argument("--seconds", type=float, default=0.3, help="of each measurement")
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    if args.file:
        rows = rows_of(args, args.file)
    else:
        with random_file(args.folder, int(args.file_gb * 1e9)) as path:
            rows = rows_of(args, path)
    settings = {name: str(value) if isinstance(value, Path) else value for name, value in vars(args).items()}
    save_result({"schema_version": 1, "settings": settings, "rows": rows}, args.json)


if __name__ == "__main__":
    run_command(main)
