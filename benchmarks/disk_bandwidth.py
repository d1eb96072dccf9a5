"""Measures how fast several readers together read records of one size from a disk, past the page cache.

    python benchmarks/disk_bandwidth.py --files CHECKPOINT/*.safetensors --record_mb 12.6 --readers 4

Records begin at random pages of the files, as experts do.
"""

import argparse
import json
import os
import random
import threading
import time
from collections.abc import Sequence
from pathlib import Path

from dwellmoe.offload.io.memory import HostMemory

BLOCK_BYTES = 4096


def read_bandwidth(
    files: Sequence[Path], record_bytes: int, readers: int, seconds: float = 2.0, seed: int = 0
) -> float:
    """Bytes a second that `readers` threads read together with direct I/O, each one record at a time, into
    memory like the engine's.
    """
    record_bytes -= record_bytes % -BLOCK_BYTES
    counts = [0] * readers
    stop = time.perf_counter() + seconds

    def read(reader: int) -> None:
        draw = random.Random(seed * readers + reader)
        buffer = HostMemory(record_bytes).bytes.data
        handles = [os.open(path, os.O_RDONLY | os.O_DIRECT) for path in files]
        blocks = [(os.fstat(handle).st_size - record_bytes) // BLOCK_BYTES for handle in handles]
        while time.perf_counter() < stop:
            i = draw.randrange(len(handles))
            counts[reader] += os.preadv(handles[i], [buffer], draw.randrange(blocks[i]) * BLOCK_BYTES)
        for handle in handles:
            os.close(handle)

    start = time.perf_counter()
    threads = [threading.Thread(target=read, args=(reader,)) for reader in range(readers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sum(counts) / (time.perf_counter() - start)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--files", nargs="+", type=Path, required=True)
    parser.add_argument("--record_mb", type=float, default=12.6)
    parser.add_argument("--readers", nargs="+", type=int, default=[1, 2, 4, 8])
    parser.add_argument("--seconds", type=float, default=2.0)
    args = parser.parse_args()
    record_bytes = int(args.record_mb * 1e6)
    rows = {n: read_bandwidth(args.files, record_bytes, n, args.seconds) for n in args.readers}
    print(json.dumps({"record_bytes": record_bytes, "bytes_per_second_by_readers": rows}))


if __name__ == "__main__":
    main()
