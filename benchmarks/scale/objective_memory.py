"""Memory and time of each locality objective, forward and backward, at the size of a real model's gates.

`objective_memory_over_logits`: the most bytes of tensors alive at once, above those alive before, in sizes of
the gate logits; the logits' own gradient is among them. Counted from the events of torch's allocator (not of
numpy). `objective_time_vs_all_layers_at_once`: processor time of a pass over that of the same formula on all
layers in one tensor; the two take turns, after one round that does not count, and the least of each is taken.
"""

import argparse
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from dwellmoe.locality.objectives import OBJECTIVES, load_objective, objective_names

LAYERS, ROWS, TOKENS, EXPERTS, CHOSEN = 48, 4, 1024, 128, 8
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def gates(layers: int, rows: int, tokens: int, experts: int, top_k: int, dtype: torch.dtype):
    """Random logits whose consecutive tokens resemble each other, the experts chosen, and all pairs."""
    drawn = torch.randn(layers, rows, tokens, experts, generator=torch.Generator().manual_seed(0))
    logits = (drawn + drawn.roll(1, 2)).to(dtype).requires_grad_()
    return logits, logits.detach().topk(top_k).indices, torch.ones(rows, tokens - 1, dtype=torch.bool)


def passes(objective: Callable[..., Tensor], logits: Tensor, *others: Tensor) -> None:
    """A forward and a backward pass."""
    logits.grad = None
    objective(logits, *others).backward()


def peak_bytes(run: Callable[[], object]) -> int:
    """The most bytes that tensors on the CPU take at once while `run` runs, above those before it."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        run()
    assert profiled.profiler is not None and profiled.profiler.kineto_results is not None
    events: list[Any] = [e for e in profiled.profiler.kineto_results.events() if e.name() == "[memory]"]
    alive = most = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        alive += event.nbytes()
        most = max(most, alive)
    return most


def memory_over_logits(objective: Callable[..., Tensor], logits: Tensor, *others: Tensor) -> float:
    passes(objective, logits, *others)  # what is made once and kept is not counted
    logits.grad = None
    return peak_bytes(lambda: passes(objective, logits, *others)) / logits.nbytes


def time_ratio(name: str, rounds: int, *inputs: Tensor) -> float:
    """Processor seconds of the objective over those of its formula on all layers at once."""
    ways = {"layers": load_objective(name), "at once": OBJECTIVES.get(name)}
    taken: dict[str, list[float]] = {way: [] for way in ways}
    for _ in range(rounds + 1):
        for way, objective in ways.items():
            start = time.process_time()
            passes(objective, *inputs)
            taken[way].append(time.process_time() - start)
    return min(taken["layers"][1:]) / min(taken["at once"][1:])


def measure(args: argparse.Namespace) -> dict[str, dict[str, dict[str, float]]]:
    """Both measurements: name of the measurement -> fp32 or bf16 -> objective -> ratio."""
    memory: dict[str, dict[str, float]] = {}
    seconds: dict[str, dict[str, float]] = {}
    for dtype_name, dtype in DTYPES.items():
        inputs = gates(LAYERS, ROWS, TOKENS, EXPERTS, CHOSEN, dtype)
        names = objective_names()
        memory[dtype_name] = {name: memory_over_logits(load_objective(name), *inputs) for name in names}
        seconds[dtype_name] = {name: time_ratio(name, args.rounds, *inputs) for name in names}
    return {"objective_memory_over_logits": memory, "objective_time_vs_all_layers_at_once": seconds}
