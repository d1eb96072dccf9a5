"""Measures the expert-offloading engine beside resident transformers and accelerate's disk offload.

    python benchmarks/offload.py --json PATH

Each of them runs in a process of its own on the same random checkpoint (written first if it is missing) and
generates the same given tokens. They run alternately, so that a slow phase of the machine affects all. The
engine reads with direct I/O; accelerate reads through the page cache, from which its files are dropped before
each token (and once more with the cache left alone). Disk bandwidth is measured in the same run, with the
engine's record size and number of readers. Tokens are drawn at random and decide the routing, which therefore
has next to no locality: the worst case for a cache. The result also holds the hit rate and the bytes that the
kernel counts as read from disk.
"""

import argparse
import math
import platform
import shutil
import statistics
from importlib.metadata import version
from pathlib import Path

from disk_bandwidth import read_bandwidth
from random_checkpoint import SHAPES, config_of, write_checkpoint
from result import parser_of, save_result
from tqdm import tqdm
from workers import (
    READERS,
    SHORT_PROMPT,
    Answer,
    Tokens,
    Worker,
    engine_settings,
    mean_decode,
    mean_disk_bytes,
    median_decode,
    median_prefill,
)

from dwellmoe.errors import run_command

IMPLEMENTATIONS = ("eager", "grouped_mm")


def measure_full_budget(args: argparse.Namespace, tokens: Tokens) -> Answer:
    """All experts in memory; transformers counts with the faster of its experts implementations."""
    answers: dict[str, list[Answer]] = {name: [] for name in (*IMPLEMENTATIONS, "engine")}
    settings = engine_settings("100%")
    with Worker("resident", args) as resident, Worker("engine", args, settings=settings) as engine:
        engine.call("fill")
        for i in tqdm(range(args.repeats + 1), desc="rounds", disable=None):
            request = tokens.fresh(args.prompt_tokens)
            for name in answers:
                worker, options = (engine, {}) if name == "engine" else (resident, {"implementation": name})
                answer = worker.call("request", **request, **options)
                if i:
                    answers[name].append(answer)
        memory = {"resident": resident.memory(), "engine": engine.memory(), "sizes": engine.call("sizes")}
        bookkeeping = engine.call("bookkeeping")
        threads = engine.ready["threads"]
    decode = {name: median_decode(found) for name, found in answers.items()}
    prefill = {name: median_prefill(found) for name, found in answers.items()}
    return {
        "decode_vs_resident": min(decode[name] for name in IMPLEMENTATIONS) / decode["engine"],
        "prefill_vs_resident": min(prefill[name] for name in IMPLEMENTATIONS) / prefill["engine"],
        "bookkeeping_us": bookkeeping["layer"] - bookkeeping["arithmetic"],
        "bookkeeping_parts_us": bookkeeping,
        "decode_seconds": decode,
        "prefill_seconds": prefill,
        "memory": memory,
        "torch_threads": threads,
        "answers": answers,
    }


def measure_part_budget(args: argparse.Namespace, tokens: Tokens) -> Answer:
    """A quarter of the experts in memory."""
    files = sorted(Path(args.model_name).glob("*.safetensors"))
    answers: dict[str, list[Answer]] = {}
    bandwidths: list[float] = []
    with (
        Worker("resident", args) as resident,
        Worker("engine", args, settings=engine_settings(f"{args.percent}%")) as engine,
        Worker("accelerate", args, kept_layers=kept_layers(args)) as accelerate,
    ):
        sizes = engine.call("sizes")
        faster = min(IMPLEMENTATIONS, key=lambda name: decode_of(resident, tokens, name))
        requests = {
            "resident": lambda request: resident.call("request", **request, implementation=faster),
            "engine": lambda request: engine.call("request", **request),
            "accelerate": lambda request: accelerate.call("request", **request, cold=True),
            "accelerate_page_cache": lambda request: accelerate.call("request", **request, cold=False),
        }
        for i in tqdm(range(args.repeats + 1), desc="rounds", disable=None):
            request, long = tokens.fresh(SHORT_PROMPT), tokens.fresh(args.prompt_tokens)
            bandwidths.append(read_bandwidth(files, sizes["record_bytes"], READERS, 1.0, seed=i))
            taken = {name: run(request) for name, run in requests.items()}
            bandwidths.append(read_bandwidth(files, sizes["record_bytes"], READERS, 1.0, seed=~i))
            taken |= {f"{name}_prompt": requests[name](long) for name in ("resident", "engine")}
            engine.call("request", **tokens.constant())  # loads the experts that the next requests hit
            taken |= {f"{name}_all_hit": requests[name](tokens.constant()) for name in ("resident", "engine")}
            for name, answer in taken.items():
                answers.setdefault(name, []).extend([answer] if i else [])
        memory = {"engine": engine.memory(), "accelerate": accelerate.memory(), "sizes": sizes}
    return part_budget_figures(answers, statistics.median(bandwidths[2:])) | {
        "disk_bytes_per_second_each": bandwidths,
        "memory": memory,
        "answers": answers,
    }


def kept_layers(args: argparse.Namespace) -> int:
    """Expert layers within the budget, rounded up; the running layer takes memory in addition."""
    return math.ceil(config_of(args.shape).num_hidden_layers * args.percent / 100)


def decode_of(resident: Worker, tokens: Tokens, implementation: str) -> float:
    """Median seconds of a token, after one request to warm up."""
    for _ in range(2):
        answer = resident.call("request", **tokens.fresh(SHORT_PROMPT), implementation=implementation)
    return median_decode([answer])


def part_budget_figures(answers: dict[str, list[Answer]], disk_bytes_per_second: float) -> Answer:
    """Means where misses make tokens differ; medians where all tokens take about the same time."""
    decode = {name: mean_decode(found) for name, found in answers.items()}
    median = {name: median_decode(found) for name, found in answers.items()}
    engine = answers["engine"]
    missed = [answer["statistics"]["decode"]["disk_bytes"] for answer in engine]
    steps = sum(len(answer["decode_seconds"]) for answer in engine)
    missed_bytes_per_token = sum(missed) / steps
    floor_seconds = max(missed_bytes_per_token / disk_bytes_per_second, median["resident"])
    counts = {name: sum(answer["decode_cache"][name] for answer in engine) for name in ("hits", "misses")}
    return {
        "decode_vs_accelerate": decode["accelerate"] / decode["engine"],
        "decode_vs_accelerate_page_cache": decode["accelerate_page_cache"] / decode["engine"],
        "decode_over_floor": decode["engine"] / floor_seconds,
        "all_hit_overhead": median["engine_all_hit"] / median["resident_all_hit"] - 1,
        "all_hit_loads": sum(answer["decode_cache"]["misses"] for answer in answers["engine_all_hit"]),
        "decode_mean_seconds": decode,
        "decode_median_seconds": median,
        "prefill_seconds": {name: median_prefill(found) for name, found in answers.items()},
        "disk_bytes_a_request": {name: mean_disk_bytes(found) for name, found in answers.items()},
        "floor_seconds": floor_seconds,
        "disk_bytes_per_second": disk_bytes_per_second,
        "missed_bytes_per_token": missed_bytes_per_token,
        "hit_rate": counts["hits"] / (counts["hits"] + counts["misses"]),
        "prompt_reads": [answer["statistics"]["prefill"] for answer in answers["engine_prompt"]],
    }


def measure(args: argparse.Namespace) -> Answer:
    write_checkpoint(args.shape, Path(args.model_name))
    tokens = Tokens(config_of(args.shape).vocab_size, args.decode_tokens)
    full = measure_full_budget(args, tokens) if "full" in args.parts else None
    part = measure_part_budget(args, tokens) if "part" in args.parts else None
    shutil.rmtree(args.offload_folder, ignore_errors=True)
    figures: Answer = {"schema_version": 1, "settings": vars(args), "machine": machine()}
    if full:
        figures["decode_vs_resident_at_100"] = full["decode_vs_resident"]
        figures["prefill_vs_resident_at_100"] = full["prefill_vs_resident"]
        figures["bookkeeping_us_per_layer_token"] = full["bookkeeping_us"]
    if part:
        figures["decode_vs_accelerate_at_25"] = part["decode_vs_accelerate"]
        figures["decode_over_floor_at_25"] = part["decode_over_floor"]
        figures["all_hit_overhead"] = part["all_hit_overhead"]
    return figures | {"full_budget": full, "part_budget": part}


def machine() -> dict[str, str]:
    packages = {name: version(name) for name in ("torch", "transformers", "accelerate")}
    return {"machine": platform.machine(), "python": platform.python_version(), **packages}


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("--shape", default="olmoe-4l", choices=SHAPES)
    parser.add_argument("--model_name", help="the checkpoint; default results/bench/SHAPE")
    parser.add_argument(
        "--percent",
        type=float,
        default=25.0,
        help="experts in memory in the second part",
    )
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--prompt_tokens", type=int, default=512)
    parser.add_argument("--decode_tokens", type=int, default=17)
    parser.add_argument("--parts", nargs="+", default=["full", "part"], choices=["full", "part"])
    args = parser.parse_args()
    args.model_name = args.model_name or f"results/bench/{args.shape}"
    args.offload_folder = f"{args.model_name}-accelerate"
    save_result(measure(args), args.json)


if __name__ == "__main__":
    run_command(main)
