"""Compares ways to share an expert cache between prefill and decode, at equal memory, on recorded traces:

    python benchmarks/phase_split.py --trace A.safetensors B.route.csv --capacity 25% --json PATH

`shared` sends both phases through one cache. The others let prefill stream through a small buffer (`--buffer`
slots a layer, taken from the capacity) and differ in what they hand over to decode. Prefill is in chunks of a
whole prompt. Bytes are those fetched, a token of the phase.
"""

import argparse
from pathlib import Path

from result import show_result

from dwellmoe.cache.formats import read_trace
from dwellmoe.cache.progress import progress_bar
from dwellmoe.cache.replay.replay_split import replay_split
from dwellmoe.cache.tiers.prefill_decode import SHARED
from dwellmoe.errors import run_command

RULES = (SHARED, "none", "recent:tokens=4", "recent:tokens=16", "lrfu:decay=0.9", "lrfu:decay=0.98")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--trace", nargs="+", required=True, help="traces with both phases")
    parser.add_argument("--policies", nargs="+", default=["lru", "lrfu:decay=0.95"])
    parser.add_argument("--capacity", default="25%", help="of each layer, buffer included [25%%]")
    parser.add_argument("--buffer", type=int, default=2, help="slots for prefill to stream through [2]")
    parser.add_argument("--json", metavar="PATH", help="write the result ('-': standard output)")
    arguments = parser.parse_args()
    rows = [
        row_of(path, policy, rule, arguments)
        for path in arguments.trace
        for policy in arguments.policies
        for rule in RULES
    ]
    show_result({"schema_version": 1, "cache": rows}, arguments.json)


def row_of(path: str, policy: str, rule: str, arguments: argparse.Namespace) -> dict:
    """One hand-off rule on one trace; bytes of both phases together are given a request."""
    trace = read_trace(path)
    buffer = 0 if rule == SHARED else arguments.buffer
    found = replay_split(
        trace, policy, arguments.capacity, rule, prefill_buffer=buffer, progress=progress_bar(rule)
    )
    decode = int((trace.phase == 1).sum())
    fetched = found.prefill_bytes_per_token * (trace.steps - decode)
    fetched += (found.miss_bytes_per_token or 0) * decode
    requests = len(set(trace.request.tolist()))
    return {"trace": Path(path).name, **found.as_dict(), "bytes_per_request": fetched / requests}


if __name__ == "__main__":
    run_command(main)
