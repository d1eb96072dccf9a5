"""Measures whether packed experts (`dwellmoe pack`) are served faster than a checkpoint as it is.

    python benchmarks/packing.py --json PATH

Two engines on the random checkpoint of benchmarks/offload.py run the same requests alternately.
"""

import argparse
from pathlib import Path

from random_checkpoint import SHAPES, config_of, write_checkpoint
from result import parser_of, save_result
from workers import Answer, Tokens, Worker, engine_settings, mean_decode, median_prefill

from dwellmoe.errors import run_command
from dwellmoe.offload.pack import pack


def measure(args: argparse.Namespace) -> Answer:
    write_checkpoint(args.shape, Path(args.model_name))
    folder = Path(args.packed)
    pack(args.model_name, folder)
    tokens = Tokens(config_of(args.shape).vocab_size, args.decode_tokens)
    plain = engine_settings(args.expert_budget)
    answers: dict[str, list[Answer]] = {"as_it_is": [], "packed": []}
    with (
        Worker("engine", args, settings=plain) as as_it_is,
        Worker("engine", args, settings=plain | {"packed": str(folder)}) as packed,
    ):
        workers = {"as_it_is": as_it_is, "packed": packed}
        for i in range(args.repeats + 1):
            request = tokens.fresh(args.prompt_tokens)
            for name in list(workers)[:: 1 if i % 2 else -1]:
                answer = workers[name].call("request", **request)
                answers[name] += [answer] if i else []
    decode = {name: mean_decode(found) for name, found in answers.items()}
    prefill = {name: median_prefill(found) for name, found in answers.items()}
    return {
        "schema_version": 1,
        "settings": vars(args),
        "decode_packed_speedup": decode["as_it_is"] / decode["packed"],
        "prefill_packed_speedup": prefill["as_it_is"] / prefill["packed"],
        "decode_mean_seconds": decode,
        "prefill_median_seconds": prefill,
        "answers": answers,
    }


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("--shape", default="olmoe-4l", choices=SHAPES)
    parser.add_argument("--model_name", help="the checkpoint; default results/bench/SHAPE")
    parser.add_argument(
        "--packed", help="folder of the packed model, written if missing; default: beside the checkpoint"
    )
    parser.add_argument("--expert_budget", default="25%")
    parser.add_argument("--repeats", type=int, default=6)
    parser.add_argument("--prompt_tokens", type=int, default=512)
    parser.add_argument("--decode_tokens", type=int, default=17)
    args = parser.parse_args()
    args.model_name, args.offload_folder = args.model_name or f"results/bench/{args.shape}", ""
    args.packed = args.packed or f"{args.model_name}-packed"
    save_result(measure(args), args.json)


if __name__ == "__main__":
    run_command(main)
