"""Compares predictors of use by the time that watermark placement leaves a token waiting:

    python benchmarks/placed_predictors.py --trace F --predictions P... --json PATH

Each file P is what `dwellmoe simulate predict` wrote beside F; beside them stand no look-ahead at all and the
profile's own. On every device the rest of its `[placement]` stays.
"""

import argparse
import sys
from dataclasses import replace
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
from result import parser_of, save_result

from dwellmoe.cache.device import DeviceProfile, load_device
from dwellmoe.cache.formats import read_trace
from dwellmoe.cache.progress import progress_bar
from dwellmoe.cache.replay.stall import stall, stall_lines
from dwellmoe.cache.tiers.tier_policy import tier_budget
from dwellmoe.cache.trace import RoutingTrace
from dwellmoe.errors import run_command

TIER_POLICIES = ("placement", "placement+prefetch")


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("--trace", required=True)
    parser.add_argument("--predictions", nargs="*", default=[], metavar="FILE")
    parser.add_argument("--eta", type=float, default=1.0, help="the share of each file [1]")
    parser.add_argument("--capacity", default="12.5%", help="room on the device")
    parser.add_argument("--ram_capacity", default="25%", help="room in RAM, on devices that have one below")
    devices = sorted(str(path) for path in (ROOT / "configs" / "devices").glob("*.toml"))
    parser.add_argument("--devices", nargs="+", default=devices, metavar="TOML")
    args = parser.parse_args()
    trace, rows = read_trace(args.trace), []
    for path in args.devices:
        rows += rows_on(load_device(path), trace, args)
    save_result({"schema_version": 1, "settings": vars(args), "rows": rows}, args.json)


def rows_on(device: DeviceProfile, trace: RoutingTrace, args: argparse.Namespace) -> list[dict]:
    """A row for each predictor and tier policy, printed as a table too."""
    ram = args.ram_capacity if device.ram_gb else "0"
    budget, constants, found = tier_budget(trace, device, 0, args.capacity, ram), device.placement, []
    settings = [replace(constants, lookahead=""), constants]
    settings += [
        replace(constants, lookahead=f"recorded:file={path}", eta=args.eta) for path in args.predictions
    ]
    for each in settings:
        named = {"device": device.name, "predictor": each.predictor, "lookahead": each.lookahead}
        changed = replace(device, placement=each)
        rows = [
            stall(trace, changed, budget, name, progress=progress_bar(each.lookahead))
            for name in TIER_POLICIES
        ]
        print(f"{device.name}: lookahead '{each.lookahead}'", *stall_lines(rows), sep="\n", file=sys.stderr)
        found += [named | row.as_dict() for row in rows]
    return found


if __name__ == "__main__":
    run_command(main)
