"""Judges predictors of expert use on held-out requests:

    python benchmarks/predictors.py --learn A.safetensors --judge B.safetensors --json PATH

They learn from most requests of the first trace; the share of each fusion is fitted on the rest of it; all
are judged on the second, decoded tokens only.
"""

import argparse
import sys
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.result import show_result
from errors import run_command
from eviction_training.requests import rows_of, split_by_request
from expert_cache.formats import read_trace
from expert_cache.prediction import Calibration, fit_eta, fuse, predictions, quality, used_of
from expert_cache.progress import progress_bar
from expert_cache.trace import RoutingTrace

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
    said = {spec: predictions(spec, split.train, judged) for spec in arguments.predictors}
    tuned = {spec: predictions(spec, split.train, tuning) for spec in arguments.predictors}
    if arguments.model:
        for name, predict in (("gate_ahead", gate_ahead), ("scoutgate", scoutgate)):
            said[name], tuned[name] = predict(arguments)
    used, used_tuning = np.concatenate(judged), np.concatenate(tuning)
    rows = [{"predictor": spec, **quality(said[spec], used)} for spec in said]
    for one, other in combinations(said, 2):
        eta = fit_eta(tuned[one], tuned[other], used_tuning)
        fused = quality(fuse(said[one], said[other], eta), used)
        rows.append({"predictor": f"{one} + {other}", "eta": eta, **fused})
    show_result({"schema_version": 1, "tokens": len(used), "predictors": rows}, arguments.json)


def gate_ahead(arguments: argparse.Namespace) -> tuple[np.ndarray, np.ndarray]:
    """What each layer's gate says one layer early, of the judged requests and of the tuning ones."""
    from models import find_moe_layers
    from routing.gate_ahead import margins_ahead

    model = load_model(arguments)
    layers, (train, validation) = find_moe_layers(model), whole_requests(read_trace(arguments.learn))
    probability = Calibration(margins_ahead(model, layers, train), np.concatenate(used_of(train)))
    judged, tuning = (
        probability(margins_ahead(model, layers, trace))
        for trace in (read_trace(arguments.judge), validation)
    )
    return judged, tuning


def scoutgate(arguments: argparse.Namespace) -> tuple[np.ndarray, np.ndarray]:
    """What a gate trained on the first trace says of the judged requests and of the tuning ones.

    It sees the prompt's token ids too, so both traces are split with their prompts.
    """
    from eviction_training.scoutgate import predict_scoutgate, train_scoutgate

    embedding = load_model(arguments).get_input_embeddings().weight.detach()
    train, validation = whole_requests(read_trace(arguments.learn))
    gate, log = train_scoutgate(embedding, train, validation, progress=progress_bar("scoutgate"))
    print(*log, sep="\n", file=sys.stderr)
    return predict_scoutgate(gate, read_trace(arguments.judge)), predict_scoutgate(gate, validation)


def load_model(arguments: argparse.Namespace) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(arguments.model)


def whole_requests(trace: RoutingTrace) -> tuple[RoutingTrace, RoutingTrace]:
    """The split of `split_by_request` with the prompts left in."""
    held_out = set(split_by_request(trace, "decode", 0.2, seed=0).validation.request.tolist())
    inside = np.isin(trace.request, list(held_out))
    return rows_of(trace, ~inside), rows_of(trace, inside)


if __name__ == "__main__":
    run_command(main)
