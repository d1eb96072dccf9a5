"""Measures what serving adds to a token: a streamed answer, from the request to the end of the stream,
against the same answer of `model.generate`, by turns in one run.

    python benchmarks/serving.py --json PATH [--model_name FOLDER] [--expert_budget 25%]

Both are made by one model with one cache, on one thread, of the server's process; the client is a process of
its own. The seconds of an answer are divided by its tokens.
"""

import argparse
import json
import socket
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import NamedTuple

import torch
import uvicorn

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from result import parser_of, save_result

from dwellmoe.cli.serve import parse_options
from dwellmoe.errors import run_command
from dwellmoe.evaluation.requests import prompt_ids
from dwellmoe.loading import quiet
from dwellmoe.provenance import provenance
from dwellmoe.serving.app import Service, application
from dwellmoe.serving.served_model import ServedModel, load_served_model
from dwellmoe.serving.settings import ServingSettings

PROMPT = "A list of things to buy: bread, milk, eggs,"
"""To which models/tiny-olmoe writes more than the tokens that are asked for."""
WARM_UP_ROUNDS = 2


class Answer(NamedTuple):
    """One answer: its tokens and how long it took, prompt included."""

    tokens: int
    seconds: float

    @property
    def token_seconds(self) -> float:
        return self.seconds / self.tokens


def generated(served: ServedModel, new_tokens: int) -> Answer:
    """An answer of `model.generate`, tokenising included."""
    evaluated = served.evaluated
    began = time.perf_counter()
    ids = torch.tensor([prompt_ids(evaluated.tokenizer, PROMPT, max_tokens=None).ids])
    with torch.inference_mode():
        found = evaluated.model.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=new_tokens, do_sample=False
        )
    return Answer(found.shape[1] - ids.shape[1], time.perf_counter() - began)


class Client:
    """A process that asks for the same answer, streamed, over a new connection each time."""

    def __init__(self, port: int, model_name: str, new_tokens: int) -> None:
        body = {"model": Path(model_name).name, "prompt": PROMPT, "max_tokens": new_tokens}
        command = [sys.executable, str(ROOT / "benchmarks/streaming_client.py"), str(port)]
        self._process = subprocess.Popen(
            [*command, json.dumps(body | {"stream": True, "temperature": 0})],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def answer(self) -> Answer:
        """The seconds are the client's own."""
        asking, told = self._process.stdin, self._process.stdout
        assert asking and told
        print(file=asking, flush=True)
        fields = json.loads(told.readline())
        return Answer(fields["tokens"], fields["seconds"])

    def close(self) -> None:
        self._process.kill()
        self._process.wait()


@contextmanager
def listening(service: Service, port: int = 0) -> Iterator[int]:
    """The port, any free one for 0, at which the service answers, from a thread."""
    server = uvicorn.Server(uvicorn.Config(application(service), log_level="warning", lifespan="off"))
    with socket.create_server(("127.0.0.1", port)) as bound:
        thread = threading.Thread(target=server.run, args=([bound],))
        thread.start()
        try:
            yield bound.getsockname()[1]
        finally:
            server.should_exit = server.force_exit = True
            thread.join()


def measure(service: Service, args: argparse.Namespace) -> list[tuple[Answer, Answer]]:
    """An answer of each kind a round; those of the first rounds, which warm caches up, are left out."""
    rounds = []
    with listening(service) as port, closing(Client(port, args.model_name, args.new_tokens)) as client:
        for number in range(WARM_UP_ROUNDS + args.rounds):
            own = service.queue.worker.submit(generated, service.served, args.new_tokens).result()
            rounds.append((own, client.answer()))
            seconds, over_http = (answer.token_seconds * 1e3 for answer in rounds[-1])
            print(f"round {number}: {seconds:.2f} ms, served {over_http:.2f} ms a token", flush=True)
            assert rounds[-1][0].tokens == rounds[-1][1].tokens, "answers of other lengths"
    return rounds[WARM_UP_ROUNDS:]


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("--model_name", default="models/tiny-olmoe")
    parser.add_argument("--expert_budget", default="25%", help="empty: all experts in memory")
    parser.add_argument("--new_tokens", type=int, default=96)
    parser.add_argument("--rounds", type=int, default=15)
    args = parser.parse_args()
    quiet()
    budget = ["--expert_budget", args.expert_budget] if args.expert_budget else []
    service = Service(load_served_model(parse_options([args.model_name, *budget])), ServingSettings())
    pairs = [(own.token_seconds, over.token_seconds) for own, over in measure(service, args)]
    service.end()
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
