"""Judges predictors of expert use on held-out requests:

    python benchmarks/predictors.py --learn A.safetensors --judge B.safetensors --json PATH

They learn from most requests of the first trace; the share of each fusion is fitted on the rest of it; all
are judged on the second, decoded tokens only.
"""

import argparse
import sys
from itertools import combinations
from typing import Any

import numpy as np
from result import show_result

from dwellmoe.cache.formats import read_trace
from dwellmoe.cache.prediction import fit_eta, fuse, predictions, quality, used_of
from dwellmoe.cache.progress import progress_bar
from dwellmoe.errors import run_command
from dwellmoe.eviction_training.requests import split_by_request

SPECS = ("last", "ewma:alpha=0.5", "ewma:alpha=0.05", "habits", "transition")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--learn", required=True, metavar="TRACE")
    parser.add_argument("--judge", required=True, metavar="TRACE")
    parser.add_argument("--predictors", nargs="+", default=list(SPECS))
    parser.add_argument(
        "--model",
        metavar="FOLDER",
        help="the model that wrote the traces: train ScoutGate on its embeddings, and ask its gates ahead",
    )
    parser.add_argument("--json", metavar="PATH", help="write the result ('-': standard output)")
    arguments = parser.parse_args()
    split = split_by_request(read_trace(arguments.learn), "decode", 0.2, seed=0)
    judged = used_of(read_trace(arguments.judge))
    tuning = used_of(split.validation)
    message = {spec: predictions(spec, split.train, judged) for spec in arguments.predictors}
    tuned = {spec: predictions(spec, split.train, tuning) for spec in arguments.predictors}
    if arguments.model:
        for name, found in of_the_model(arguments).items():
            message[name], tuned[name] = found.trace, found.validation
    used, used_tuning = np.concatenate(judged), np.concatenate(tuning)
    rows = [{"predictor": spec, **quality(message[spec], used)} for spec in message]
    for one, other in combinations(message, 2):
        eta = fit_eta(tuned[one], tuned[other], used_tuning)
        fused = quality(fuse(message[one], message[other], eta), used)
        rows.append({"predictor": f"{one} + {other}", "eta": eta, **fused})
    show_result({"schema_version": 1, "tokens": len(used), "predictors": rows}, arguments.json)


def of_the_model(arguments: argparse.Namespace) -> dict[str, Any]:
    """What its gates say one layer early, and what a ScoutGate trained on the first trace says."""
    from transformers import AutoModelForCausalLM

    from dwellmoe.eviction_training.model_predictions import Source, gate_ahead, scoutgate

    model = AutoModelForCausalLM.from_pretrained(arguments.model)
    source = Source.of(model, read_trace(arguments.learn), read_trace(arguments.judge))
    scout, _, log = scoutgate(source, progress_bar("scoutgate"))
    print(*log, sep="\n", file=sys.stderr)
    return {"gate_ahead": gate_ahead(source), "scoutgate": scout}


if __name__ == "__main__":
    run_command(main)
