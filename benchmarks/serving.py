"""Measures what serving adds to a token: a streamed answer, from the request to the end of the stream,
against the same answer of `model.generate`, by turns in one run.

    python benchmarks/serving.py --json PATH [--model_name FOLDER] [--expert_budget 25%]

The server is a process of its own, with the model and a cache of its own; while it answers, this process
waits, and the other way round. The seconds of an answer are divided by its tokens.
"""

import argparse
import json
import re
import socket
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from result import parser_of, save_result

from dwellmoe.errors import run_command
from dwellmoe.evaluation.evaluated_model import EvaluatedModel
from dwellmoe.evaluation.load import load_with_adapters
from dwellmoe.evaluation.requests import prompt_ids
from dwellmoe.loading import quiet
from dwellmoe.provenance import provenance
from dwellmoe.settings.engine import EngineSettings
from dwellmoe.settings.model import ModelSettings

PROMPT = "Once upon a time there was a fox who"
COMPLETION_TOKENS = re.compile(rb'"completion_tokens":(\d+)')
WARM_UP_ROUNDS = 2


class Answer(NamedTuple):
    """One answer: its tokens and how long it took, prompt included."""

    tokens: int
    seconds: float

    @property
    def token_seconds(self) -> float:
        return self.seconds / self.tokens


def generated(evaluated: EvaluatedModel, args: argparse.Namespace) -> Answer:
    """An answer of `model.generate`, tokenising included."""
    began = time.perf_counter()
    ids = torch.tensor([prompt_ids(evaluated.tokenizer, PROMPT, max_tokens=None).ids])
    with torch.inference_mode():
        found = evaluated.model.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=args.new_tokens, do_sample=False
        )
    return Answer(found.shape[1] - ids.shape[1], time.perf_counter() - began)


def served(port: int, args: argparse.Namespace) -> Answer:
    """The same answer, streamed by the server over a new connection."""
    body = {"model": Path(args.model_name).name, "prompt": PROMPT, "max_tokens": args.new_tokens}
    data = json.dumps(body | {"stream": True, "temperature": 0}).encode()
    head = "POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    received = bytearray()
    began = time.perf_counter()
    with socket.create_connection(("127.0.0.1", port)) as connection:
        connection.sendall(f"{head}Content-Length: {len(data)}\r\nConnection: close\r\n\r\n".encode() + data)
        while piece := connection.recv(1 << 16):
            received += piece
    seconds = time.perf_counter() - began
    tokens = COMPLETION_TOKENS.search(received)
    assert tokens, f"no whole answer: {received[-300:]!r}"
    return Answer(int(tokens[1]), seconds)


def start_server(args: argparse.Namespace) -> tuple[subprocess.Popen, int]:
    command = [sys.executable, "-m", "dwellmoe", "serve", args.model_name, "--port", "0"]
    budget = ["--expert_budget", args.expert_budget] if args.expert_budget else []
    process = subprocess.Popen([*command, *budget], stdout=subprocess.PIPE, text=True, cwd=ROOT)
    assert process.stdout
    line = process.stdout.readline()
    port = line.partition("127.0.0.1:")[2].partition("/")[0]
    assert port.isdigit(), f"the server did not start: {line!r}"
    return process, int(port)


def measure(evaluated: EvaluatedModel, args: argparse.Namespace) -> list[tuple[Answer, Answer]]:
    """An answer of each kind a round; those of the first rounds, which warm caches up, are left out."""
    process, port = start_server(args)
    rounds = []
    try:
        for number in range(WARM_UP_ROUNDS + args.rounds):
            rounds.append((generated(evaluated, args), served(port, args)))
            own, over_http = (answer.token_seconds * 1e3 for answer in rounds[-1])
            print(f"round {number}: {own:.2f} ms, served {over_http:.2f} ms a token", flush=True)
            assert rounds[-1][0].tokens == rounds[-1][1].tokens, "answers of other lengths"
    finally:
        process.terminate()
        process.wait()
    return rounds[WARM_UP_ROUNDS:]


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("--model_name", default="models/tiny-olmoe")
    parser.add_argument("--expert_budget", default="25%", help="empty: all experts in memory")
    parser.add_argument("--new_tokens", type=int, default=96)
    parser.add_argument("--rounds", type=int, default=15)
    args = parser.parse_args()
    quiet()
    engine = EngineSettings(expert_budget=args.expert_budget) if args.expert_budget else None
    evaluated = load_with_adapters(ModelSettings(model_name=args.model_name), engine, {})
    pairs = [(own.token_seconds, over.token_seconds) for own, over in measure(evaluated, args)]
    own, over_http = (statistics.median(column) for column in zip(*pairs, strict=True))
    ratios = sorted(over / own for own, over in pairs)
    ratio = statistics.median(ratios)
    print(
        f"a token: {own * 1e3:.2f} ms by generate, {over_http * 1e3:.2f} ms served: {ratio:.3f}x "
        f"({ratios[0]:.3f} to {ratios[-1]:.3f})"
    )
    result = {
        "schema_version": 2,
        "made": provenance(),
        "settings": vars(args),
        "torch_threads": torch.get_num_threads(),
        "generate_token_seconds": own,
        "served_token_seconds": over_http,
        "serving_ratio": ratio,
        "serving_ratios": ratios,
    }
    save_result(result, args.json)


if __name__ == "__main__":
    run_command(main)
