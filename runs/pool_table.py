"""Prints a row for each point of a sweep: misses, perplexity, and what the pool of the prompt is worth.

python runs/pool_table.py FOLDER    (the --out of runs/sweep.py)
"""

import json
import sys
from pathlib import Path

from dwellmoe.cache.replay.prompt_pool import prompt_pool_rows
from dwellmoe.cache.replay.replay_split import replay_split
from dwellmoe.cache.trace import RoutingTrace
from dwellmoe.errors import run_command

CAPACITY = "25%"
HANDOFFS = ("none", "recent:tokens=8", "pool")
RATIOS = ("switch_rate_ratio", "lru_misses_25_ratio", "perplexity_ratio")
HEAD = [
    "objective",
    "weight",
    "seed",
    "switch rate",
    "LRU misses, 25 %",
    "perplexity",
    "outside the prompt's pool",
    *(f"misses, hand-off {handoff}" for handoff in HANDOFFS),
]


def row(record: dict, trace: RoutingTrace) -> list[str]:
    """Ratios to the control of the same seed; for the control itself to the base model."""
    compared = record["comparison"]
    ratios = [_ratio(compared, name) for name in RATIOS]
    (pool,) = prompt_pool_rows(trace, [CAPACITY])
    low, high = pool.outside_ci95 or (pool.outside, pool.outside)
    missed = [f"{1 - replay_split(trace, 'lru', CAPACITY, handoff).hit_rate:.3f}" for handoff in HANDOFFS]
    name = [record["objective"], f"{record['weight']:g}", str(record["seed"])]
    return [*name, *ratios, f"{pool.outside:.3f} ({low:.3f}-{high:.3f})", *missed]


def _ratio(compared: dict, name: str) -> str:
    low, high = compared[f"{name}_ci95"]
    return f"{compared[name]:.4f}x ({low:.4f}-{high:.4f})"


def main() -> None:
    folder = Path(sys.argv[1])
    lines = [HEAD, ["---"] * len(HEAD)]
    for path in sorted((folder / "points").glob("*.json")):
        trace = RoutingTrace.load(folder / "reports" / path.stem / "trace-tuned-teacher_forced.safetensors")
        lines.append(row(json.loads(path.read_text()), trace))
    for line in lines:
        print(f"| {' | '.join(line)} |")


if __name__ == "__main__":
    run_command(main)
