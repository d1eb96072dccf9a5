"""Measures what locality training and tracing cost, each beside its own control, as ratios of one run.

    python benchmarks/training_overhead.py --json PATH

A step is forward, backward and optimizer on the same batch. Variants run in rounds, of which the first are
warm-up; ratios are of medians. Peak memory is the largest resident set of a process of its own.
"""

import argparse
import os
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from transformers import Trainer

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from result import parser_of, save_result

from config import TrainSettings
from dwellmoe.data.collate import PaddingCollator
from dwellmoe.families import MoeLayer, find_moe_layers
from dwellmoe.loading import load_model, quiet
from dwellmoe.locality.elastic_lora import LoraShape, add_elastic_lora
from dwellmoe.locality.settings import LocalitySettings
from dwellmoe.routing import RouterTap
from dwellmoe.routing.trace_recorder import TraceRecorder
from dwellmoe.settings.model import ModelSettings
from trainer import LocalityTrainer

MEMORY_STEPS = 6
GIVE_BACK = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_ARENA_MAX": "1"}
"""glibc then returns freed tensors at once, so that the resident set is the memory in use."""
Step = Callable[[], object]


def make_batch(args: argparse.Namespace) -> dict:
    generator = torch.Generator().manual_seed(0)
    rows = torch.randint(2, 4000, (args.rows, args.tokens), generator=generator).tolist()
    return PaddingCollator(1)([{"input_ids": row, "labels": row} for row in rows])


def training_step(
    args: argparse.Namespace, objective: str | None, part: str = "all", distillation: float = 0.0
) -> Step:
    """One step of a LoRA fine-tuning: with an objective or none, on all layers or on half of them, with or
    without distillation from the reference model.
    """
    model = load_model(ModelSettings(model_name=args.model_name))
    layers = find_moe_layers(model)
    selected = {"all": layers, "every second": layers[::2], "upper half": layers[len(layers) // 2 :]}[part]
    model = add_elastic_lora(model, selected, LoraShape(rank=8))
    trainer = make_trainer(model, objective, selected, distillation)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], 1e-4, fused=True)
    batch = make_batch(args)
    trainer.current_gradient_accumulation_steps = 1

    def step() -> None:
        inputs = dict(batch)
        if objective is None:
            del inputs["segment_ids"]
        trainer.training_step(model, inputs)
        optimizer.step()
        optimizer.zero_grad()

    return step


def make_trainer(model, objective: str | None, selected: list[MoeLayer], distillation: float) -> Trainer:
    settings = TrainSettings(
        output_dir="results/bench",
        report_to="none",
        disable_tqdm=True,
        eval_strategy="no",
        save_strategy="no",
        load_best_model_at_end=False,
    )
    if objective is None:
        return Trainer(model, settings)
    locality = LocalitySettings(
        consecutive_expert_loss_type=objective,
        consecutive_expert_loss_weight=1.0,
        distillation_weight=distillation,
    )
    return LocalityTrainer(model, settings, locality=locality, trained_layers=selected)


def forward_step(args: argparse.Namespace, traced: bool) -> Step:
    """One forward pass of an evaluation, with every router recorded or without."""
    model = load_model(ModelSettings(model_name=args.model_name)).eval()
    layers = find_moe_layers(model)
    batch = make_batch(args)
    segments = batch.pop("segment_ids")

    @torch.no_grad()
    def step() -> None:
        if not traced:
            model(**batch)
            return
        recorder = TraceRecorder(layers)
        with RouterTap(model, layers, [recorder]):
            model(**batch)
        recorder.add(range(len(segments)), segments > 0, segments > 0)

    return step


def seconds_of(steps: dict[str, Step], rounds: int, warm_up: int) -> dict[str, float]:
    """Median seconds of each step; each round runs them all, so that a slow spell of the machine hits all."""
    taken: dict[str, list[float]] = {name: [] for name in steps}
    for i in range(warm_up + rounds):
        for name, step in steps.items():
            start = time.perf_counter()
            step()
            if i >= warm_up:
                taken[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in taken.items()}


def peak_bytes(args: argparse.Namespace, objective: str) -> int:
    """Largest resident set of a process that takes a few steps with the objective ('none' for without)."""
    command = [sys.executable, __file__, "--peak_of", objective, "--model_name", args.model_name]
    command += ["--rows", str(args.rows), "--tokens", str(args.tokens)]
    done = subprocess.run(command, check=True, capture_output=True, text=True, env=os.environ | GIVE_BACK)
    return int(done.stdout.split()[-1])


def print_own_peak(args: argparse.Namespace) -> None:
    step = training_step(args, None if args.peak_of == "none" else args.peak_of)
    for _ in range(MEMORY_STEPS):
        step()
    print(own_peak_bytes())


def own_peak_bytes() -> int:
    """Largest resident set of this process (Linux). Not ru_maxrss, which begins with the parent's."""
    status = Path("/proc/self/status").read_text()
    return int(re.search(r"VmHWM:\s+(\d+) kB", status)[1]) * 1024


def measure(args: argparse.Namespace) -> dict:
    steps = {
        "control": training_step(args, None),
        "locality": training_step(args, args.objective),
        "every_second_layer": training_step(args, args.objective, "every second"),
        "upper_half": training_step(args, args.objective, "upper half"),
        "distilled": training_step(args, args.objective, distillation=1.0),
    }
    seconds = seconds_of(steps, args.rounds, args.warm_up)
    forwards = {"plain": forward_step(args, False), "traced": forward_step(args, True)}
    forward_seconds = seconds_of(forwards, 2 * args.rounds, args.warm_up)
    peaks = {name: peak_bytes(args, name) for name in ("none", args.objective)}
    return {
        "schema_version": 1,
        "settings": vars(args),
        "torch_threads": torch.get_num_threads(),
        "step_time_ratio": seconds["locality"] / seconds["control"],
        "distilled_step_time_ratio": seconds["distilled"] / seconds["control"],
        "peak_memory_ratio": peaks[args.objective] / peaks["none"],
        "half_layers_time_ratio": seconds["every_second_layer"] / seconds["locality"],
        "upper_half_time_ratio": seconds["upper_half"] / seconds["locality"],
        "tracing_time_ratio": forward_seconds["traced"] / forward_seconds["plain"],
        "step_seconds": seconds,
        "forward_seconds": forward_seconds,
        "peak_bytes": peaks,
    }


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("--model_name", default=str(ROOT / "models" / "tiny-olmoe"))
    parser.add_argument("--objective", default=LocalitySettings.consecutive_expert_loss_type)
    parser.add_argument("--rows", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--warm_up", type=int, default=3)
    parser.add_argument("--peak_of", help=argparse.SUPPRESS)
    args = parser.parse_args()
    quiet()
    if args.peak_of:
        print_own_peak(args)
        return
    save_result(measure(args), args.json)


if __name__ == "__main__":
    main()
