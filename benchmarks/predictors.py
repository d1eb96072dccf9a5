"""Judges predictors of expert use on held-out requests:

    python benchmarks/predictors.py --learn A.safetensors --judge B.safetensors --json PATH

They learn from most requests of the first trace; the share of each fusion is fitted on the rest of it; all
are judged on the second, decoded tokens only.
"""

import argparse
import sys
from itertools import combinations
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.simulator import write_result
from errors import run_command
from eviction_training.requests import split_by_request
from expert_cache.formats import read_trace
from expert_cache.prediction import fit_eta, fuse, predictions, quality, used_of

SPECS = ("last", "ewma:alpha=0.5", "ewma:alpha=0.05", "transition")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--learn", required=True, metavar="TRACE")
    parser.add_argument("--judge", required=True, metavar="TRACE")
    parser.add_argument("--predictors", nargs="+", default=list(SPECS))
    parser.add_argument("--json", metavar="PATH", help="write the result ('-': standard output)")
    arguments = parser.parse_args()
    split = split_by_request(read_trace(arguments.learn), "decode", 0.2, seed=0)
    judged = used_of(read_trace(arguments.judge))
    tuning = used_of(split.validation)
    said = {spec: predictions(spec, split.train, judged) for spec in arguments.predictors}
    tuned = {spec: predictions(spec, split.train, tuning) for spec in arguments.predictors}
    used, used_tuning = np.concatenate(judged), np.concatenate(tuning)
    rows = [{"predictor": spec, **quality(said[spec], used)} for spec in arguments.predictors]
    for one, other in combinations(arguments.predictors, 2):
        eta = fit_eta(tuned[one], tuned[other], used_tuning)
        fused = quality(fuse(said[one], said[other], eta), used)
        rows.append({"predictor": f"{one} + {other}", "eta": eta, **fused})
    write_result({"schema_version": 1, "tokens": len(used), "predictors": rows}, arguments.json)


if __name__ == "__main__":
    run_command(main)
