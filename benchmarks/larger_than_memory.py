"""Measures the engine alone on a random checkpoint that need not fit into memory: seconds a token beside
their floor, and the peak memory of the process.

    python benchmarks/larger_than_memory.py --shape deepseek-v2-lite --expert_budget 4GiB --json PATH

The floor is the larger of missed bytes / disk bandwidth, measured between the requests, and the time of a
token without a miss. Tokens are those of benchmarks/offload.py.
"""

import argparse
import statistics
from pathlib import Path

from disk_bandwidth import read_bandwidth
from random_checkpoint import SHAPES, config_of, write_checkpoint
from result import parser_of, save_result
from workers import READERS, SHORT_PROMPT, Answer, Tokens, Worker, engine_settings, mean_decode, median_decode

from dwellmoe.errors import run_command


def measure(args: argparse.Namespace) -> Answer:
    files = sorted(write_checkpoint(args.shape, Path(args.model_name)).glob("*.safetensors"))
    tokens = Tokens(config_of(args.shape).vocab_size, args.decode_tokens)
    answers: list[Answer] = []
    bandwidths: list[float] = []
    with Worker("engine", args, settings=engine_settings(args.expert_budget)) as worker:
        sizes = worker.call("sizes")
        for i in range(args.repeats + 1):
            bandwidths.append(read_bandwidth(files, sizes["record_bytes"], READERS, 1.0, seed=i))
            answers.append(worker.call("request", **tokens.fresh(SHORT_PROMPT)))
        all_hit = [worker.call("request", **tokens.constant()) for _ in range(2)][1]
        memory = worker.memory()
    missed = sum(answer["statistics"]["decode"]["disk_bytes"] for answer in answers[1:])
    missed /= sum(len(answer["decode_seconds"]) for answer in answers[1:])
    disk = statistics.median(bandwidths)
    floor_seconds = max(missed / disk, median_decode([all_hit]))
    return {
        "schema_version": 1,
        "settings": vars(args),
        "checkpoint_bytes": sum(path.stat().st_size for path in files),
        "peak_bytes": memory["peak_bytes"],
        "decode_over_floor": mean_decode(answers[1:]) / floor_seconds,
        "decode_mean_seconds": mean_decode(answers[1:]),
        "floor_seconds": floor_seconds,
        "all_hit_seconds": median_decode([all_hit]),
        "missed_bytes_per_token": missed,
        "disk_bytes_per_second": disk,
        "memory": memory | sizes,
        "answers": answers,
    }


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("--shape", default="deepseek-v2-lite", choices=SHAPES)
    parser.add_argument("--model_name", help="the checkpoint; default results/bench/SHAPE")
    parser.add_argument("--expert_budget", default="4GiB")
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--decode_tokens", type=int, default=9)
    args = parser.parse_args()
    args.model_name, args.offload_folder = args.model_name or f"results/bench/{args.shape}", ""
    save_result(measure(args), args.json)


if __name__ == "__main__":
    run_command(main)
