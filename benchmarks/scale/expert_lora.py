"""LoRA of experts per expert, against PEFT's wrapper and against training the router alone.

A step is forward, backward (language-model and locality loss) and AdamW on 4 x 512 tokens drawn anew. Router
only: LoRA on the gate. The others: the default targets (attention, experts, gate), rank 8. Decoding: one
token behind a prompt of 32, with the adapter beside the weights, against the model without one.
"""

import argparse
import sys
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).resolve().parent
sys.path[:0] = [str(FOLDER.parent.parent), str(FOLDER.parent)]

import torch
from scale.locality_step import locality_step
from scale.olmoe_layers import VOCABULARY, make_model
from scale.step_process import StepProcess, seconds_in_turns, serve
from transformers import DynamicCache

from dwellmoe.experts import use_expert_lora
from dwellmoe.families import find_moe_layers
from dwellmoe.locality.elastic_lora import LoraShape, add_elastic_lora

ROWS, TOKENS, PROMPT, RANK = 4, 512, 32, 8
TARGETS = {"router": "gate", "peft": "auto", "sparse": "auto"}
"""How LoRA is computed -> what has LoRA."""
DECODE_STEPS, MEMORY_STEPS = 10, 3
Step = Callable[[], object]


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """The figures of this section."""
    seconds = _seconds("train", args.rounds, args.warm_up)
    decode_seconds = _seconds("decode", args.rounds, args.warm_up, DECODE_STEPS)
    extra_bytes = {variant: _extra_bytes(variant) for variant in TARGETS}
    return {
        "expert_lora_time_vs_peft": seconds["sparse"] / seconds["peft"],
        "expert_lora_time_vs_router_only": seconds["sparse"] / seconds["router"],
        "expert_lora_extra_memory_vs_peft": extra_bytes["sparse"] / extra_bytes["peft"],
        "live_decode_vs_base": decode_seconds["sparse"] / decode_seconds["base"],
        "expert_lora_step_seconds": seconds,
        "expert_lora_extra_bytes": extra_bytes,
        "expert_lora_decode_seconds": decode_seconds,
    }


def _seconds(what: str, rounds: int, warm_up: int, steps: int = 1) -> dict[str, float]:
    variants = TARGETS if what == "train" else ("base", "peft", "sparse")
    with ExitStack() as stack:
        processes = {name: stack.enter_context(StepProcess(__file__, what, name)) for name in variants}
        return seconds_in_turns(processes, rounds, warm_up, steps)


def _extra_bytes(variant: str) -> int:
    """Largest memory of a few steps above that of the loaded model."""
    with StepProcess(__file__, "train", variant, exact_memory=True) as process:
        return int([process.step()["extra_bytes"] for _ in range(MEMORY_STEPS)][-1])


def with_adapter(model: Any, variant: str) -> Any:
    """The model with an adapter whose factors are not zero."""
    tuned = add_elastic_lora(model, find_moe_layers(model), LoraShape(RANK, targets=(TARGETS[variant],)))
    for name, weight in tuned.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=1e-3)
    if variant == "sparse":
        use_expert_lora(tuned)
    return tuned


def training_step(variant: str) -> Step:
    plain = make_model()

    def prepare() -> Step:
        return locality_step(with_adapter(plain, variant).train(), ROWS, TOKENS, VOCABULARY)

    return _prepared_at_first(prepare)


def _prepared_at_first(prepare: Callable[[], Step]) -> Step:
    """A step that is made when it is first taken: an adapter then counts as memory above the weights."""
    steps: list[Step] = []

    def step() -> None:
        if not steps:
            steps.append(prepare())
        steps[0]()

    return step


def decode_step(variant: str) -> Step:
    model = make_model()
    if variant != "base":
        model = with_adapter(model, variant)
    model.eval()
    cache = DynamicCache(config=model.config)
    with torch.no_grad():
        model(input_ids=torch.randint(VOCABULARY, (1, PROMPT)), past_key_values=cache)

    @torch.no_grad()
    def step() -> None:
        model(input_ids=torch.randint(VOCABULARY, (1, 1)), past_key_values=cache)
        cache.crop(-1)

    return step


if __name__ == "__main__":
    kind, name = sys.argv[1:]
    serve(lambda: (training_step if kind == "train" else decode_step)(name))
