"""Measures the engine beside llama.cpp on the same checkpoint: in memory, and under the same memory limit.

    make bench-llamacpp
    python benchmarks/llamacpp.py --llamacpp .cache/llamacpp --json PATH

Each runs in a process of its own, on as many threads and on the same given tokens, and they take turns, so
that a slow phase of the machine affects all. The engine runs experts of 16 bits, and packed ones of 8 and 4
bits (`dwellmoe pack`) with the linear layers of the rest of the model in as many (`--dense_format`);
llama.cpp runs BF16, Q8_0 and Q4_0. Times are of forward passes alone on both sides: no token is chosen.
Ratios are of tokens a second, the engine's over llama.cpp's: in memory the median of those of each turn.

A limit is set from outside by a memory cgroup, in which the page cache counts (root only). It holds the
program, the rest of the model and a quarter of the experts in the form in which the engine holds them.
llama.cpp maps its file. It runs twice, with the system's read-ahead and with --read_ahead_kb, on a copy of
the file each, for pages belong to the process that read them first; the faster one counts.
"""

import argparse
import shutil
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import NamedTuple

from llamacpp_files import HERE, convert, python_of, quantise
from memory_limit import Controller, MemoryLimit, drop_page_cache, find_controller
from offload import machine
from random_checkpoint import SHAPES, write_checkpoint
from read_ahead import read_ahead, setting_of
from result import parser_of, save_result
from tqdm import tqdm
from transformers import AutoConfig
from workers import (
    SHORT_PROMPT,
    Answer,
    Process,
    Tokens,
    Worker,
    engine_settings,
    mean_decode,
    mean_disk_bytes,
    median_decode,
    median_prefill,
)

from dwellmoe.errors import UserError, run_command
from dwellmoe.log import warn_once

QUARTER = "25%"
TYPES = {"bf16": "bf16", "int8": "q8_0", "int4": "q4_0"}
"""The form in which the engine holds experts -> llama.cpp's type of about as many bits."""
PACKED = {"int8": "int8", "int4": "int4:group=64"}
PARTS = {"memory": tuple(TYPES), "limit_bf16": ("bf16", "int4"), "limit_int4": ("int4",)}
"""Part -> the forms that it runs."""
OLMOE_GB = 45
"""Of disk, for the files of OLMoE's whole shape."""
DEFAULT, OTHER = "llamacpp", "llamacpp_read_ahead"


class Files(NamedTuple):
    """The same model in several forms."""

    engine: dict[str, Path]
    """Form -> the checkpoint, or a packed folder."""
    llamacpp: dict[str, Path]
    """Form -> GGUF file of the type that is compared with it."""


def prepare(args: argparse.Namespace, shape: str, checkpoint: Path, forms: Sequence[str]) -> Files:
    """Writes what is missing."""
    llamacpp = Path(args.llamacpp)
    write_checkpoint(shape, checkpoint)
    plain = convert(checkpoint, Path(f"{checkpoint}-bf16.gguf"), "bf16", llamacpp)
    files = Files({"bf16": checkpoint}, {"bf16": plain})
    for form in PACKED:
        if form in forms:
            out = Path(f"{checkpoint}-{TYPES[form]}.gguf")
            files.engine[form] = _packed(checkpoint, PACKED[form])
            files.llamacpp[form] = quantise(plain, out, TYPES[form].upper(), llamacpp)
    return files


def _packed(checkpoint: Path, spec: str) -> Path:
    out = Path(f"{checkpoint}-{spec.replace(':', '-')}")
    if not out.exists():
        command = [sys.executable, "-m", "dwellmoe", "pack", str(checkpoint), str(out), "--format", spec]
        if status := subprocess.run(command).returncode:
            raise UserError(f"dwellmoe pack --format {spec} ended with exit code {status}")
    return out


def start_engine(
    args: argparse.Namespace, form: str, files: Files, budget: str, limit: MemoryLimit | None = None
) -> Worker:
    """The engine on experts of a form."""
    settings = engine_settings(budget) | ({"dense_format": PACKED[form]} if form in PACKED else {})
    where = argparse.Namespace(model_name=str(files.engine[form]), offload_folder="")
    return Worker("engine", where, limit=limit, threads=args.threads, settings=settings)


def start_llamacpp(args: argparse.Namespace, path: Path, limit: MemoryLimit | None = None) -> Process:
    """llama.cpp on a file. Without a limit it may copy weights into an order that it computes faster with."""
    command = [python_of(Path(args.llamacpp)), str(HERE / "llamacpp_worker.py"), str(path)]
    command += ["--threads", str(args.threads), "--repack", "no" if limit else "yes"]
    command += ["--context", str(max(args.prompt_tokens, SHORT_PROMPT) + args.decode_tokens)]
    return Process(command, limit)


def take_turns(workers: dict[str, Process], requests: list[Answer], warm_up: int) -> dict[str, list[Answer]]:
    """Every process's answers to the same requests, without those to the first `warm_up`."""
    answers: dict[str, list[Answer]] = {name: [] for name in workers}
    names = list(workers)
    for i, request in enumerate(tqdm(requests, desc="requests", disable=None)):
        for name in names[i % len(names) :] + names[: i % len(names)]:
            answer = workers[name].call("passes", **request)
            answers[name] += [answer] if i >= warm_up else []
    return answers


def tokens_of(args: argparse.Namespace, files: Files) -> Tokens:
    return Tokens(AutoConfig.from_pretrained(files.engine["bf16"]).vocab_size, args.decode_tokens)


def measure_in_memory(args: argparse.Namespace, files: Files) -> Answer:
    """All weights in memory, one form after the other."""
    tokens = tokens_of(args, files)
    requests = [tokens.fresh(args.prompt_tokens) for _ in range(args.repeats + 1)]
    answers, memory = {}, {}
    for form, path in files.llamacpp.items():
        with start_engine(args, form, files, "100%") as engine, start_llamacpp(args, path) as llamacpp:
            engine.call("fill")
            workers = {form: engine, f"llamacpp_{TYPES[form]}": llamacpp}
            answers |= take_turns(workers, requests, warm_up=1)
            memory |= {name: worker.memory() for name, worker in workers.items()}
    taken = {"decode": median_decode, "prefill": median_prefill}
    seconds = {
        what: {name: median(found) for name, found in answers.items()} for what, median in taken.items()
    }
    ratios = {
        f"{what}_{form}_vs_llamacpp_{TYPES[form]}": ratio_by_turn(
            answers[f"llamacpp_{TYPES[form]}"], answers[form], median
        )
        for what, median in taken.items()
        for form in files.llamacpp
    }
    return {"ratios": ratios, "median_seconds": seconds, "memory": memory, "answers": answers}


def ratio_by_turn(
    theirs: list[Answer], ours: list[Answer], seconds: Callable[[Sequence[Answer]], float]
) -> float:
    """The median, over the requests, of how much longer llama.cpp took than the engine in the same turn."""
    return statistics.median(
        seconds([one]) / seconds([other]) for one, other in zip(theirs, ours, strict=True)
    )


def measure_limited(args: argparse.Namespace, form: str, files: Files, controller: Controller) -> Answer:
    """Every process under the same limit; under that of 16 bits the engine runs 4 bits as well."""
    budgets, limit_bytes = budgets_and_limit(args, form, files)
    tokens = tokens_of(args, files)
    requests = [tokens.fresh(SHORT_PROMPT) for _ in range(args.repeats + args.warm_up)]
    with copied(files.llamacpp[form]) as copy, ExitStack() as stack:
        starts: dict[str, Callable[[MemoryLimit], Process]] = {
            each: lambda limit, each=each: start_engine(args, each, files, budgets[each], limit)
            for each in budgets
        }
        starts[DEFAULT] = lambda limit: start_llamacpp(args, files.llamacpp[form], limit)
        if setting_of(copy):
            starts[OTHER] = lambda limit: start_llamacpp(args, copy, limit)
        drop_page_cache([path for folder in files.engine.values() for path in folder.iterdir()])
        drop_page_cache([files.llamacpp[form], copy])
        limits, workers = {}, {}
        for name, start in starts.items():
            limits[name] = stack.enter_context(MemoryLimit(controller, name, limit_bytes))
            with read_ahead(copy, args.read_ahead_kb if name == OTHER else None):
                workers[name] = stack.enter_context(start(limits[name]))
        answers = take_turns(workers, requests, args.warm_up)
        peaks = {name: limit.peak_bytes for name, limit in limits.items()}
    decode = {name: mean_decode(found) for name, found in answers.items()}
    theirs = min(decode[name] for name in (DEFAULT, OTHER) if name in decode)
    ratios = {f"limited_decode_{form}_vs_llamacpp_{TYPES[form]}": theirs / decode[form]}
    if form == "bf16":
        ratios["int4_vs_bf16_same_limit"] = decode["bf16"] / decode["int4"]
    return {
        "ratios": ratios,
        "limit_bytes": limit_bytes,
        "budgets": budgets,
        "llamacpp_file_bytes": files.llamacpp[form].stat().st_size,
        "peak_bytes": peaks,
        "decode_mean_seconds": decode,
        "disk_bytes_a_request": {name: mean_disk_bytes(found) for name, found in answers.items()},
        "hit_rate": {form: hit_rate(answers[form]) for form in budgets},
        "answers": answers,
    }


def budgets_and_limit(args: argparse.Namespace, form: str, files: Files) -> tuple[dict[str, str], int]:
    """The budget for experts of each form that the engine runs, and the limit in bytes."""
    program_bytes = args.program_mb * 10**6
    sizes = sizes_of(args, form, files)
    limit_bytes = program_bytes + sizes["resident_weight_bytes"] + sizes["all_expert_bytes"] // 4
    if given := getattr(args, f"{form}_limit_mb"):
        limit_bytes = given * 10**6
    budgets = {form: QUARTER}
    if form == "bf16":
        left = limit_bytes - program_bytes - sizes_of(args, "int4", files)["resident_weight_bytes"]
        budgets["int4"] = f"{left}B"
    return budgets, limit_bytes


def sizes_of(args: argparse.Namespace, form: str, files: Files) -> Answer:
    """Bytes of a model as the engine holds it."""
    with start_engine(args, form, files, QUARTER) as worker:
        return worker.call("sizes")


def hit_rate(answers: list[Answer]) -> float:
    counts = {name: sum(each["decode_cache"][name] for each in answers) for name in ("hits", "misses")}
    return counts["hits"] / (counts["hits"] + counts["misses"])


@contextmanager
def copied(path: Path) -> Iterator[Path]:
    """A copy of a file, which is gone after the block."""
    copy = path.with_suffix(".copy.gguf")
    try:
        shutil.copyfile(path, copy)
        yield copy
    finally:
        copy.unlink(missing_ok=True)


def limit_int4_shape(args: argparse.Namespace) -> str:
    """The asked shape, or that of the other parts where the disk has no room for its files."""
    shape = args.limit_int4_shape
    free_gb = shutil.disk_usage(".").free / 1e9
    if Path(f"results/bench/{shape}-q4_0.gguf").exists() or shape != "olmoe" or free_gb >= OLMOE_GB:
        return shape
    warn_once(
        f"limit_int4: {free_gb:.0f} GB of disk are free and {shape} takes {OLMOE_GB}: {args.shape} is "
        "measured, whose Q4_0 file nearly fits into the limit, so that the limit hardly slows llama.cpp down"
    )
    return args.shape


def measure(args: argparse.Namespace) -> Answer:
    controller = find_controller()
    if controller is None and set(args.parts) != {"memory"}:
        warn_once("no memory limit can be set here (root and a memory cgroup are needed): parts are left out")
    found: Answer = {}
    for part in args.parts:
        shape = limit_int4_shape(args) if part == "limit_int4" else args.shape
        checkpoint = Path(args.model_name if shape == args.shape else f"results/bench/{shape}")
        if part == "memory":
            found[part] = measure_in_memory(args, prepare(args, shape, checkpoint, PARTS[part]))
        elif controller:
            files = prepare(args, shape, checkpoint, PARTS[part])
            found[part] = measure_limited(args, part.removeprefix("limit_"), files, controller)
    ratios = {name: ratio for part in found.values() for name, ratio in part["ratios"].items()}
    return {"schema_version": 1, "settings": vars(args), "machine": machine(), **ratios, **found}


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("--shape", default="olmoe-4l", choices=SHAPES)
    parser.add_argument("--model_name", help="the checkpoint; default results/bench/SHAPE")
    parser.add_argument("--limit_int4_shape", default="olmoe", choices=SHAPES, help="of the part limit_int4")
    parser.add_argument("--llamacpp", default=".cache/llamacpp", help="environment with llama-cpp-python")
    parser.add_argument("--parts", nargs="+", default=list(PARTS), choices=PARTS)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--warm_up", type=int, default=2, help="requests under a limit that are not counted")
    parser.add_argument("--prompt_tokens", type=int, default=512, help="of the part in memory")
    parser.add_argument("--decode_tokens", type=int, default=17)
    parser.add_argument("--program_mb", type=int, default=800, help="of a limit, for the program itself")
    parser.add_argument("--bf16_limit_mb", type=int, default=0, help="another limit than the computed one")
    parser.add_argument("--int4_limit_mb", type=int, default=0, help="another limit than the computed one")
    parser.add_argument("--read_ahead_kb", type=int, default=128, help="of llama.cpp's second process")
    args = parser.parse_args()
    args.model_name = args.model_name or f"results/bench/{args.shape}"
    save_result(measure(args), args.json)


if __name__ == "__main__":
    run_command(main)
