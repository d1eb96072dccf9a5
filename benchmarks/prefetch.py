"""Measures prefetching in the engine: correct predictions, wasted reads, stalls of decoding.

    python benchmarks/prefetch.py --model_name models/tiny-olmoe --json PATH [--predictors gate_ahead habits]

Greedy answers to a few prompts, from cold caches for each predictor and prefetch budget; only decoded tokens
count. `recall`: the share of the next layer's experts among those that its gate chooses on this layer's
hidden states; `recall_rescaled`: on those states divided by this layer's norm weights and multiplied by the
next layer's.
"""

import argparse
from pathlib import Path
from typing import Any

import torch
from result import parser_of, save_result
from transformers import AutoTokenizer

from dwellmoe.errors import run_command
from dwellmoe.families import find_moe_layers
from dwellmoe.offload import EngineSettings, load_with_cache

ROOT = Path(__file__).resolve().parent.parent
PROMPTS = (
    "Once upon a time there was",
    "Lily and Tom went to the park and",
    "The dog was sad because",
    "A man is",
)
COUNTS = ("prefetch_issued", "prefetch_wasted", "prefetch_wasted_bytes")


def answer_all(model: Any, tokenizer: Any, new_tokens: int) -> None:
    for prompt in PROMPTS:
        ids = tokenizer(prompt, return_tensors="pt")["input_ids"]
        model.generate(ids, max_new_tokens=new_tokens, min_new_tokens=new_tokens, do_sample=False)


def row_of(args: argparse.Namespace, tokenizer: Any, predictor: str, budget: int) -> dict[str, Any]:
    settings = EngineSettings(args.expert_budget, prefetch_budget=budget, prefetch_predictor=predictor)
    model, engine = load_with_cache(args.model_name, settings, args.dtype)
    in_prompts = PromptPrefetches(engine)
    model.register_forward_hook(in_prompts.pass_ended)
    with engine:
        answer_all(model, tokenizer, args.new_tokens)
        counts, decode = engine.statistics, engine.statistics.decode
    issued = {name: getattr(counts, name) - in_prompts.counted[name] for name in COUNTS}
    return {
        "predictor": predictor,
        "prefetch_budget": budget,
        "decode_loads": decode.disk_loads,
        "prefetch_hits": decode.prefetch_hits,
        **issued,
        "stall_seconds_per_token": decode.stall_seconds / decode.tokens,
        "token_seconds": decode.seconds / decode.tokens,
    }


class PromptPrefetches:
    """Sums up the prefetches of prompts, which the engine does not count apart from those of decoding."""

    def __init__(self, engine: Any) -> None:
        self.engine, self.counted = engine, dict.fromkeys(COUNTS, 0)
        self._before = dict.fromkeys(COUNTS, 0)

    def pass_ended(self, *_: Any) -> None:
        now = {name: getattr(self.engine.statistics, name) for name in COUNTS}
        if self.engine.in_prefill:
            for name in COUNTS:
                self.counted[name] += now[name] - self._before[name]
        self._before = now


def recalls(args: argparse.Namespace, tokenizer: Any) -> dict[str, float]:
    """Over decoded tokens and all layers but the first."""
    model, engine = load_with_cache(args.model_name, EngineSettings("100%"), args.dtype)
    layers = find_moe_layers(model)
    routers = [model.get_submodule(layer.router) for layer in layers]
    decoders: list[Any] = [model.get_submodule(layer.block.rpartition(".")[0]) for layer in layers]
    norms = [decoder.post_attention_layernorm for decoder in decoders]
    ahead: dict[str, torch.Tensor] = {}
    found: dict[str, list[float]] = {"recall": [], "recall_rescaled": []}

    def observe(i: int, hidden: torch.Tensor, output: Any) -> None:
        chosen = output[2]
        if len(chosen) != 1:
            return
        for name, predicted in ahead.items():
            found[name].append(torch.isin(chosen, predicted).float().mean().item())
        ahead.clear()
        if i + 1 < len(routers):
            scale = norms[i + 1].weight / norms[i].weight
            ahead["recall"] = routers[i + 1].forward(hidden)[2]
            ahead["recall_rescaled"] = routers[i + 1].forward(hidden * scale)[2]

    for i, router in enumerate(routers):
        router.register_forward_hook(lambda _, inputs, output, i=i: observe(i, inputs[0], output))
    with engine, torch.no_grad():
        answer_all(model, tokenizer, args.new_tokens)
    return {name: sum(values) / len(values) for name, values in found.items()}


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("--model_name", default=str(ROOT / "models" / "tiny-olmoe"))
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--expert_budget", default="25%")
    parser.add_argument("--budgets", nargs="+", type=int, default=[0, 2, 4, 8])
    parser.add_argument("--predictors", nargs="+", default=["gate_ahead"], metavar="P")
    parser.add_argument("--new_tokens", type=int, default=64)
    args = parser.parse_args()
    tokenizer = AutoTokenizer.from_pretrained(args.model_name)
    rows = [row_of(args, tokenizer, each, budget) for each in args.predictors for budget in args.budgets]
    result = {"schema_version": 1, "settings": vars(args), **recalls(args, tokenizer), "rows": rows}
    save_result(result, args.json)


if __name__ == "__main__":
    run_command(main)
