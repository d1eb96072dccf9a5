"""Runs a checkpoint in one mode, in a process of its own: one JSON request a line, one JSON answer each.

Modes: `resident` (transformers, everything in memory), `accelerate` (transformers with accelerate, most
expert layers on disk), `engine` (this project's). benchmarks/offload.py starts and compares them.
"""

import argparse
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from process_reads import read_bytes
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    DynamicCache,
    LogitsProcessor,
    LogitsProcessorList,
    PreTrainedModel,
)

from dwellmoe.experts.low_bit_linear import low_bit_bytes
from dwellmoe.families import find_moe_layers
from dwellmoe.loading import quiet
from dwellmoe.offload import EngineSettings, load_with_cache
from dwellmoe.offload.compute import OneToken
from dwellmoe.offload.experts_implementation import HANDLE

DTYPE = torch.bfloat16
BOOKKEEPING_CALLS = 2000
Answer = dict[str, Any]


class ForcedTokens(LogitsProcessor):
    """Makes `generate` produce given tokens, so that every mode does the same work, and times each token."""

    def __init__(self, tokens: list[int], before_each: Callable[[], None]) -> None:
        self.tokens, self.before_each = tokens, before_each
        self.seconds: list[float] = []
        self._began = time.perf_counter()

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        forced = torch.full_like(scores, -torch.inf)
        forced[:, self.tokens[len(self.seconds)]] = 0
        self.seconds.append(time.perf_counter() - self._began)
        self.before_each()
        self._began = time.perf_counter()
        return forced


def run_request(model: Any, prompt: list[int], tokens: list[int], before_each: Callable[[], None]) -> Answer:
    """Seconds of the prompt (to its first token) and of each further token; `before_each` is not timed.
    `disk_bytes`: bytes read from disk for this process meanwhile, as the kernel counts them.
    """
    before_each()
    read_before = read_bytes()
    forced = ForcedTokens(tokens, before_each)
    ids = torch.tensor([prompt])
    model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=len(tokens),
        do_sample=False,
        use_cache=True,
        logits_processor=LogitsProcessorList([forced]),
    )
    seconds = {"prefill_seconds": forced.seconds[0], "decode_seconds": forced.seconds[1:]}
    return seconds | {"disk_bytes": read_bytes() - read_before}


class Resident:
    """transformers with every expert in memory; the caller names the experts implementation."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.model = AutoModelForCausalLM.from_pretrained(args.model_name, dtype=DTYPE).eval()

    def request(self, prompt: list[int], tokens: list[int], implementation: str = "grouped_mm") -> Answer:
        self.model.set_experts_implementation(implementation)
        return run_request(self.model, prompt, tokens, lambda: None)


class Accelerated:
    """transformers with accelerate's disk offload: in memory are everything but the experts, and the experts
    of `kept_layers` layers. It maps its files, so that of a layer it reads what is used and what the kernel
    reads ahead. `cold`: the files are dropped from the page cache before every token; else the page cache is
    memory in excess of the budget.
    """

    def __init__(self, args: argparse.Namespace) -> None:
        with torch.device("meta"):
            skeleton = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(args.model_name))
        layers = find_moe_layers(skeleton)
        device_map: dict[str, Any] = dict.fromkeys(
            _pieces(skeleton, {layer.experts for layer in layers}), "cpu"
        )
        device_map |= {layer.experts: "disk" for layer in layers[args.kept_layers :]}
        self.folder = Path(args.offload_folder)
        self.model = AutoModelForCausalLM.from_pretrained(
            args.model_name, dtype=DTYPE, device_map=device_map, offload_folder=self.folder
        ).eval()

    def request(self, prompt: list[int], tokens: list[int], cold: bool = True) -> Answer:
        return run_request(self.model, prompt, tokens, self._drop_pages if cold else lambda: None)

    def _drop_pages(self) -> None:
        for path in self.folder.iterdir():
            handle = os.open(path, os.O_RDONLY)
            os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(handle)


def _pieces(model: PreTrainedModel, cuts: set[str], name: str = "") -> list[str]:
    """The largest modules that hold none of `cuts`, and `cuts`: they cover the model and do not overlap."""
    if name in cuts or not any(cut.startswith(f"{name}." if name else "") for cut in cuts):
        return [name]
    children = [f"{name}.{child}".lstrip(".") for child, _ in model.get_submodule(name).named_children()]
    return [piece for child in children for piece in _pieces(model, cuts, child)]


class Cached:
    """This project's engine."""

    def __init__(self, args: argparse.Namespace) -> None:
        settings = EngineSettings(**json.loads(args.settings))
        self.model, self.engine = load_with_cache(args.model_name, settings, DTYPE)

    def request(self, prompt: list[int], tokens: list[int]) -> Answer:
        self.engine.reset_counts()
        answer = run_request(self.model, prompt, tokens, lambda: None)
        counts = self.engine.hit_counts._asdict()
        return answer | {"statistics": self.engine.statistics.fields(), "decode_cache": counts}

    def passes(self, prompt: list[int], tokens: list[int]) -> Answer:
        """As `request`, by forward passes alone: without what `generate` does to choose a token."""
        self.engine.reset_counts()
        read_before, past = read_bytes(), DynamicCache(config=self.model.config)
        seconds = []
        with torch.inference_mode():
            for each in (prompt, *([token] for token in tokens[:-1])):
                began = time.perf_counter()
                self.model(torch.tensor([each]), past_key_values=past, use_cache=True, logits_to_keep=1)
                seconds.append(time.perf_counter() - began)
        return {
            "prefill_seconds": seconds[0],
            "decode_seconds": seconds[1:],
            "disk_bytes": read_bytes() - read_before,
            "statistics": self.engine.statistics.fields(),
            "decode_cache": self.engine.hit_counts._asdict(),
        }

    def sizes(self) -> Answer:
        """The parts of the memory that the budget promises."""
        weights = [weight for weight in self.model.parameters() if not self.engine.owns(weight)]
        return {
            "resident_weight_bytes": sum(weight.nbytes for weight in weights) + low_bit_bytes(self.model),
            "expert_memory_bytes": self.engine.memory.total_bytes,
            "record_bytes": max(self.engine.record_bytes),
            "all_expert_bytes": sum(
                layer.num_experts * nbytes
                for layer, nbytes in zip(self.engine.layers, self.engine.record_bytes, strict=True)
            ),
            **self.engine.budget.fields(),
        }

    def fill(self) -> Answer:
        """Runs every expert once, before the first request: at 100 % all are in memory from then on."""
        assert self.engine.in_prefill
        for layer in self.engine.layers:
            indices_TK = torch.arange(layer.num_experts).view(-1, layer.top_k)
            hidden_TD = torch.zeros(len(indices_TK), self.model.config.hidden_size, dtype=DTYPE)
            weights_TK = torch.full(indices_TK.shape, 1 / layer.top_k, dtype=DTYPE)
            self.model.get_submodule(layer.experts)(hidden_TD, indices_TK, weights_TK)
        return {}

    def bookkeeping(self) -> Answer:
        """Microseconds of a layer in a decode step without a miss, beside the experts' arithmetic: `layer` is
        the whole call with experts that compute nothing, `arithmetic` the sum of their outputs alone.
        """
        assert not self.engine.in_prefill
        experts = self.model.get_submodule(self.engine.layers[0].experts)
        cached_experts, _ = getattr(experts, HANDLE)
        top_k = self.engine.layers[0].top_k
        hidden_1D = torch.randn(1, self.model.config.hidden_size, dtype=DTYPE)
        indices_1K, weights_1K = torch.arange(top_k)[None], torch.full((1, top_k), 1 / top_k, dtype=DTYPE)

        def layer() -> None:
            cached_experts.run_layer(0, experts, hidden_1D, indices_1K, weights_1K)

        def arithmetic() -> None:
            work = OneToken(experts, hidden_1D, list(range(top_k)), weights_1K)
            work.add_all([])
            work.result()

        def compute_nothing(work: OneToken, _weights: object) -> None:
            work.outputs = [work.hidden_1D] * top_k

        with torch.no_grad(), mock.patch.object(OneToken, "add_all", compute_nothing):
            return {"layer": _median_us(layer), "arithmetic": _median_us(arithmetic)}


def _median_us(call: Callable[[], None]) -> float:
    taken = []
    for _ in range(BOOKKEEPING_CALLS):
        start = time.perf_counter_ns()
        call()
        taken.append(time.perf_counter_ns() - start)
    return sorted(taken)[len(taken) // 2] / 1000


MODES = {"resident": Resident, "accelerate": Accelerated, "engine": Cached}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("mode", choices=MODES)
    parser.add_argument("--model_name", required=True)
    parser.add_argument("--kept_layers", type=int, default=0, help="expert layers that accelerate keeps")
    parser.add_argument("--offload_folder", help="where accelerate writes what it offloads")
    parser.add_argument("--settings", default="{}", help="EngineSettings as JSON")
    args = parser.parse_args()
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # what libraries print
    quiet()
    mode = MODES[args.mode](args)
    print(json.dumps({"ready": True, "threads": torch.get_num_threads()}), file=answers, flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        print(json.dumps(getattr(mode, request.pop("do"))(**request)), file=answers, flush=True)


if __name__ == "__main__":
    main()
