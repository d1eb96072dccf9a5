"""Measures how time and memory of the simulator grow with the trace: python benchmarks/growth.py --json PATH.

Writes trace files of 10^7, 10^8 and 10^9 accesses (48 layers, 128 experts, top-8; the largest takes 2 GB, and
twice that while it is made), replays each in a process of its own, and deletes them. Resident memory is the
peak of the whole process, the interpreter and the mapped pages included.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from result import show_result
from simulator import EXPERTS, LAYERS, MILLION, TOP_K, local_trace

from dwellmoe.cache.replay.curve import curve
from dwellmoe.cache.replay.replay import replay
from dwellmoe.cache.trace import BLOCK_BYTES, RoutingTrace
from dwellmoe.errors import run_command

TILE_STEPS = 26042  # ten million accesses, made once and repeated with the experts renamed
RUNS = {
    "replay_lru": lambda trace: replay(trace, "lru", EXPERTS // 4),
    "replay_lrfu": lambda trace: replay(trace, "lrfu:decay=0.95", EXPERTS // 4),
    "replay_opt": lambda trace: replay(trace, "opt", EXPERTS // 4),
    "curve_lru": lambda trace: curve(trace, ["lru"]),
    "replay_opt_global": lambda trace: replay(trace, "opt", LAYERS * EXPERTS // 4, scope="global"),
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", metavar="PATH", help="write the result ('-': standard output)")
    parser.add_argument("--accesses", type=float, nargs="+", default=[1e7, 1e8, 1e9])
    parser.add_argument("--runs", nargs="+", choices=RUNS, default=list(RUNS))
    parser.add_argument("--cores", help="e.g. 0: only these, by taskset")
    parser.add_argument("--measure", nargs=2, metavar=("RUN", "TRACE"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        print(json.dumps(measure(*arguments.measure)))
    else:
        rows = [row for accesses in arguments.accesses for row in rows_of(accesses, arguments)]
        show_result(
            {"schema_version": 1, "mapped_at_a_time_bytes": BLOCK_BYTES, "runs": rows}, arguments.json
        )


def rows_of(accesses: float, arguments: argparse.Namespace) -> list[dict]:
    """One row a run, over a trace of about so many accesses."""
    tiles = max(1, round(accesses / (TILE_STEPS * LAYERS * TOP_K)))
    with tempfile.TemporaryDirectory() as folder:
        path = write_long_trace(Path(folder), tiles)
        return [in_its_own_process(name, path, arguments.cores) for name in arguments.runs]


def write_long_trace(folder: Path, tiles: int) -> Path:
    """A trace of `tiles` tiles on disk, written through a map."""
    tile = local_trace(TILE_STEPS, seed=0).experts
    steps, rng = tiles * TILE_STEPS, np.random.default_rng(1)
    raw = folder / "experts.raw"
    experts = np.memmap(raw, np.uint16, "w+", shape=(steps, *tile.shape[1:]))
    for number in range(tiles):
        renamed = rng.permutation(EXPERTS).astype(np.uint16)
        experts[number * TILE_STEPS : (number + 1) * TILE_STEPS] = renamed[tile]
    experts.flush()
    phase, request = np.ones(steps, np.uint8), np.repeat(np.arange(tiles, dtype=np.int32), TILE_STEPS)
    path = folder / "trace.safetensors"
    RoutingTrace(experts, phase, request, EXPERTS, source="synthetic").save(path)
    raw.unlink()
    return path


def in_its_own_process(name: str, path: Path, cores: str | None) -> dict:
    pinned = ["taskset", "--cpu-list", cores] if cores else []
    command = [*pinned, sys.executable, __file__, "--measure", name, str(path)]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def measure(name: str, path: str) -> dict:
    """Seconds and peak memory of one run, its kernels compiled before; loading checks the whole file."""
    RUNS[name](local_trace(20, seed=1))
    begun = time.perf_counter()
    trace = RoutingTrace.load(path)
    loaded = time.perf_counter()
    RUNS[name](trace)
    seconds = time.perf_counter() - loaded
    accesses = trace.experts.size
    return {
        "run": name,
        "accesses": accesses,
        "load_seconds": loaded - begun,
        "seconds": seconds,
        "nanoseconds_per_access": seconds / accesses * 1e9,
        "maccess_s": accesses / seconds / MILLION,
        "peak_resident_bytes": peak_resident_bytes(),
    }


def peak_resident_bytes() -> int:
    """Of this process; what getrusage says would include the process that started it."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) * 1024


if __name__ == "__main__":
    run_command(main)
