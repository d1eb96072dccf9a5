"""Plans GPT-OSS at its true sizes over three tiers: `python benchmarks/gpt_oss_tiers.py --json PATH`.

Sizes are those of the published checkpoints (MXFP4 experts, the rest bfloat16). The routing is synthetic, of
these shapes and about as local as a real model's: it shows how the tier policies compare at such sizes, not
how GPT-OSS routes.
"""

import argparse
import sys
from dataclasses import dataclass

from result import show_result
from simulator import local_trace

from dwellmoe.cache.device import load_device
from dwellmoe.cache.progress import progress_bar
from dwellmoe.cache.replay.stall import stall, stall_lines
from dwellmoe.cache.tiers.tier_policy import tier_budget, with_scopes
from dwellmoe.errors import run_command

MIB, TOP_K = 1 << 20, 4
TIER_POLICIES = (
    "disk",
    "ram",
    "lru",
    "lfru",
    "lrfu:decay=0.95",
    "ml_habits",
    "placement",
    "placement+prefetch",
)


@dataclass(frozen=True)
class Shape:
    layers: int
    experts: int
    resident_bytes: int  # beside the routed experts: total parameters less theirs, two bytes each
    expert_bytes: int = int(12.62 * MIB)


SHAPES = {"gpt-oss-20b": Shape(24, 32, int(3.6e9)), "gpt-oss-120b": Shape(36, 128, int(4.3e9))}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", default="configs/devices/gpu_8gb.toml")
    parser.add_argument("--tokens", type=int, default=192)
    parser.add_argument("--tier_policies", nargs="+", default=list(TIER_POLICIES))
    parser.add_argument("--json", metavar="PATH", help="write the result ('-': standard output)")
    arguments = parser.parse_args()
    found = {name: rows_of(name, shape, arguments) for name, shape in SHAPES.items()}
    show_result({"schema_version": 1, "routing": "synthetic", "stall": found}, arguments.json)


def rows_of(name: str, shape: Shape, arguments: argparse.Namespace) -> list[dict]:
    """A row for each tier policy, printed as a table too."""
    device, bytes_L = load_device(arguments.device), (shape.expert_bytes,) * shape.layers
    trace = local_trace(
        arguments.tokens, 0, shape.layers, shape.experts, TOP_K, expert_bytes=bytes_L, model=name
    )
    budget = tier_budget(trace, device, shape.resident_bytes)
    rows = [
        stall(
            trace,
            device,
            budget,
            tier_policy,
            scope=scope,
            resident_bytes=shape.resident_bytes,
            progress=progress_bar(f"{name} {tier_policy}"),
        )
        for tier_policy, scope in with_scopes(arguments.tier_policies)
    ]
    whole = sum(bytes_L) * shape.experts
    print(
        f"{name} on {device.name}: {budget.device_bytes / whole:.1%} of the experts on the device, "
        f"{budget.ram_bytes / whole:.1%} in RAM",
        *stall_lines(rows),
        sep="\n",
        file=sys.stderr,
    )
    return [row.as_dict() for row in rows]


if __name__ == "__main__":
    run_command(main)
