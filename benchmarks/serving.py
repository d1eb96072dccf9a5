"""Measures what serving adds to a token: the time between the tokens of a streamed answer against that of
`model.generate` on the same model, by turns in one run.

    python benchmarks/serving.py --json PATH [--model_name FOLDER] [--expert_budget 25%]

The server is a process of its own; while it answers, this process waits, and the other way round.
"""

import argparse
import json
import socket
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from result import parser_of, save_result

from dwellmoe.evaluation.evaluated_model import EvaluatedModel
from dwellmoe.evaluation.load import load_with_adapters
from dwellmoe.evaluation.requests import prompt_ids
from dwellmoe.loading import quiet
from dwellmoe.settings.engine import EngineSettings
from dwellmoe.settings.model import ModelSettings

PROMPT = "Once upon a time there was a fox who"


class Clock:
    """A streamer of transformers that notes when each token comes."""

    def __init__(self) -> None:
        self.seconds: list[float] = []

    def put(self, _: torch.Tensor) -> None:
        self.seconds.append(time.perf_counter())

    def end(self) -> None: ...


def generated(evaluated: EvaluatedModel, args: argparse.Namespace) -> float:
    """Seconds a token of `model.generate`, by the median gap between tokens."""
    ids = torch.tensor([prompt_ids(evaluated.tokenizer, PROMPT, max_tokens=None).ids])
    clock: Any = Clock()
    with torch.inference_mode():
        evaluated.model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=args.new_tokens,
            do_sample=False,
            streamer=clock,
        )
    return _mean_gap(clock.seconds[1:])


def served(port: int, args: argparse.Namespace) -> float:
    """The same of a streamed answer, as its events come in."""
    body = {"model": Path(args.model_name).name, "prompt": PROMPT, "max_tokens": args.new_tokens}
    data = json.dumps(body | {"stream": True, "temperature": 0}).encode()
    head = "POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
    seconds = []
    with socket.create_connection(("127.0.0.1", port)) as connection:
        connection.sendall(f"{head}Content-Length: {len(data)}\r\nConnection: close\r\n\r\n".encode() + data)
        while received := connection.recv(1 << 16):
            if b'"text":' in received:
                seconds.append(time.perf_counter())
    return _mean_gap(seconds[:-1])


def _mean_gap(seconds: list[float]) -> float:
    return (seconds[-1] - seconds[0]) / (len(seconds) - 1)


def start_server(args: argparse.Namespace) -> tuple[subprocess.Popen, int]:
    command = [sys.executable, "-m", "dwellmoe", "serve", args.model_name, "--port", "0"]
    budget = ["--expert_budget", args.expert_budget] if args.expert_budget else []
    process = subprocess.Popen([*command, *budget], stdout=subprocess.PIPE, text=True, cwd=ROOT)
    assert process.stdout
    return process, int(process.stdout.readline().partition("127.0.0.1:")[2].partition("/")[0])


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("--model_name", default="models/tiny-olmoe")
    parser.add_argument("--expert_budget", default="25%", help="empty: all experts in memory")
    parser.add_argument("--new_tokens", type=int, default=96)
    parser.add_argument("--rounds", type=int, default=9)
    args = parser.parse_args()
    quiet()
    engine = EngineSettings(expert_budget=args.expert_budget) if args.expert_budget else None
    evaluated = load_with_adapters(ModelSettings(model_name=args.model_name), engine, {})
    process, port = start_server(args)
    try:
        for _ in range(2):
            _ = generated(evaluated, args), served(port, args)
        rounds = [(generated(evaluated, args), served(port, args)) for _ in range(args.rounds)]
    finally:
        process.terminate()
        process.wait()
    own, over_http = (statistics.median(column) for column in zip(*rounds, strict=True))
    print(f"a token: {own * 1e3:.2f} ms by generate, {over_http * 1e3:.2f} ms served: {over_http / own:.3f}x")
    result = {"schema_version": 1, "settings": vars(args), "torch_threads": torch.get_num_threads()}
    ratio = {"serving_ratio": over_http / own, "generate_seconds": own, "served_seconds": over_http}
    save_result(result | ratio, args.json)


if __name__ == "__main__":
    main()
