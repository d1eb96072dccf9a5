"""Puts a mixed load on a server for some minutes, and checks that it answers as before and leaks nothing.

    python benchmarks/serving_load.py --minutes 20 --json PATH

All at once: chats and completions, whole and streamed, by the base and by an adapter; short requests; a
hundred clients in one moment; clients that are killed in the middle of a stream; readers of one byte a
second; bodies that cannot be; other budgets; a checkpoint that cannot be read for a while. Then thousands of
short requests one after the other. Memory, threads and open files of the server are compared with those
before, at rests in between, and answers with those of the beginning.

The server runs a copy of the model with a random adapter, in a temporary folder.
"""

import argparse
import contextlib
import http.client
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import openai
import psutil

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from result import parser_of, save_result

from dwellmoe.errors import run_command
from dwellmoe.provenance import provenance

MODEL, ADAPTER = "model", "tuned"
BUDGET = "25%"
BUDGETS = (BUDGET, "4", "50%", "100%", "12.5%")
CROWD = 100
FAULT_SECONDS = 2.0
REST_SECONDS = 12.0
MOST_GROWTH_BYTES = 8 << 20
"""Of the server's memory over the second half of the load, and over the short requests after it."""
READER = """import socket, sys
connection = socket.create_connection(("127.0.0.1", int(sys.argv[1])))
connection.sendall(sys.stdin.buffer.read())
while connection.recv(200): print(flush=True)
"""
"""A client that says when something came, until it is killed."""
BAD: tuple[tuple[str, bytes, int], ...] = (
    ("/v1/chat/completions", b"{", 400),
    ("/v1/completions", b'{"model": "model", "prompt": "\xff"}', 400),
    ("/v1/completions", b'{"model": "model", "prompt": "a", "max_tokens": -1}', 400),
    ("/v1/completions", b'{"model": "model", "prompt": "a", "max_tokens": %d}' % 10**30, 400),
    ("/v1/completions", b'{"model": "model", "prompt": "a", "stop": [5, {}]}', 400),
    ("/v1/completions", b'{"model": "model", "prompt": "%s"}' % (b"word " * 20_000), 400),
    ("/v1/completions", b'{"model": "../model", "prompt": "a"}', 404),
    ("/v1/completions", b" " * (5 << 20), 413),
    ("/v1/expert_cache", b'{"budget": "lots"}', 400),
    ("/v1/nothing", b"{}", 404),
)
"""Path, body and the status that is due."""


class Sample(NamedTuple):
    """What the server's process holds at a moment at which nothing runs."""

    resident_bytes: int
    threads: int
    files: int


class Load:
    """The server, and what its clients counted.

    unexpected   what was neither an answer nor a refusal that was due
    """

    def __init__(self, folder: Path, process: subprocess.Popen, port: int, seed: int) -> None:
        self.folder, self.process, self.port = folder, process, port
        self.draw = random.Random(seed)
        self.counts: Counter[str] = Counter()
        self.unexpected: list[str] = []
        self.over = threading.Event()
        self.client = openai.OpenAI(
            base_url=f"http://127.0.0.1:{port}/v1", api_key="none", max_retries=0, timeout=300
        )
        self._faults = threading.Lock()
        self._fault_numbers = [0, 0]
        """Faults of the checkpoint that have begun, and that are over."""

    def request(self, method: str, path: str, body: bytes | None = None) -> tuple[int, bytes]:
        """Status and body of an answer over a new connection."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=300)
        with contextlib.closing(connection):
            connection.request(method, path, body, {"Content-Type": "application/json"} if body else {})
            answer = connection.getresponse()
            return answer.status, answer.read()

    def raw(self, body: dict[str, Any]) -> bytes:
        """A completion request as bytes on the wire."""
        data = json.dumps(body).encode()
        head = "POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        return f"{head}Content-Length: {len(data)}\r\n\r\n".encode() + data

    def run(self, kind: str, ask: Callable[["Load"], str]) -> None:
        """One request of a kind, counted by its outcome."""
        ended, began = self._fault_numbers[1], time.perf_counter()
        try:
            outcome = ask(self)
        except openai.RateLimitError:
            outcome = "told to wait"
        except Exception as error:
            may_be_fault = self._fault_numbers[0] > ended
            outcome = "read fault" if may_be_fault and "expert" in str(error) else "unexpected"
            if outcome == "unexpected":
                after = time.perf_counter() - began
                self.unexpected.append(f"{kind} after {after:.1f} s: {type(error).__name__}: {error!s:.300}")
        self.counts[f"{kind}: {outcome}"] += 1

    @contextlib.contextmanager
    def unreadable(self) -> Iterator[None]:
        """Within the block the checkpoint is cut to half its size."""
        with self._faults:
            path = self.folder / MODEL / "model.safetensors"
            state, half = path.stat(), path.stat().st_size // 2
            rest = path.read_bytes()[half:]
            self._fault_numbers[0] += 1
            os.truncate(path, half)
            try:
                yield
            finally:
                with open(path, "r+b") as file:
                    file.seek(half)
                    file.write(rest)
                os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns))
                self._fault_numbers[1] += 1

    def until_idle(self) -> None:
        """Returns when nothing runs or waits, with the budget of the beginning."""
        for _ in range(600):
            status, found = self.request("POST", "/v1/expert_cache", json.dumps({"budget": BUDGET}).encode())
            queue = json.loads(found).get("queue", {})
            if status == 200 and not any(queue.values()):
                return
            time.sleep(0.2)
        raise AssertionError(f"a place in the queue was not given back: {queue}")

    def sample(self) -> Sample:
        """Of the idle server, after connections that were kept alive have ended, and spare threads."""
        self.until_idle()
        time.sleep(REST_SECONDS)
        process = psutil.Process(self.process.pid)
        return Sample(process.memory_info().rss, process.num_threads(), process.num_fds())


def answer_of(load: Load, model: str, **more: Any) -> str:
    messages: Any = [{"role": "user", "content": "Tell me a story about a fox."}]
    found = load.client.chat.completions.create(
        model=model, messages=messages, max_tokens=24, temperature=0, **more
    )
    if not more:
        return found.choices[0].message.content or ""
    return "".join(chunk.choices[0].delta.content or "" for chunk in found)


def chat(load: Load) -> str:
    return f"{len(answer_of(load, load.draw.choice((MODEL, ADAPTER)))) > 0} text"


def stream(load: Load) -> str:
    return f"{len(answer_of(load, load.draw.choice((MODEL, ADAPTER)), stream=True)) > 0} text"


def complete(load: Load) -> str:
    given: Any = {"model": MODEL, "prompt": "Once upon a time", "max_tokens": load.draw.randint(1, 60)}
    given |= {"stop": load.draw.choice((None, ".", ["the", "and"])), "temperature": load.draw.random()}
    if load.draw.random() < 0.5:
        return load.client.completions.create(**given).choices[0].finish_reason
    *_, last = load.client.completions.create(**given, stream=True)
    return last.choices[0].finish_reason


def short(load: Load) -> str:
    body = json.dumps({"model": MODEL, "prompt": "Once", "max_tokens": 1}).encode()
    status, found = load.request("POST", "/v1/completions", body)
    if status not in (200, 429):
        raise AssertionError(found)
    return str(status)


def killed(load: Load) -> str:
    """A process that is killed after some of the stream has come."""
    command = [sys.executable, "-S", "-E", "-c", READER, str(load.port)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin and process.stdout
        body = {"model": MODEL, "prompt": "Once", "max_tokens": 300, "stream": True}
        process.stdin.write(load.raw(body))
        process.stdin.close()
        for _ in range(load.draw.randint(0, 6)):
            process.stdout.readline()
        process.send_signal(signal.SIGKILL)
    return "killed"


def slow_reader(load: Load) -> str:
    """One byte a second for a while."""
    with socket.create_connection(("127.0.0.1", load.port), timeout=300) as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
        connection.sendall(load.raw({"model": MODEL, "prompt": "Once", "max_tokens": 80, "stream": True}))
        for _ in range(30):
            if load.over.wait(1) or not connection.recv(1):
                break
    return "read"


def crowd(load: Load) -> str:
    """A hundred clients in one moment."""
    clients = [threading.Thread(target=load.run, args=("one of a crowd", short)) for _ in range(CROWD)]
    for client in clients:
        client.start()
    for client in clients:
        client.join()
    return "asked"


def bad(load: Load) -> str:
    path, body, due = load.draw.choice(BAD)
    status, found = load.request("POST", path, body)
    if status not in (due, 429) or "message" not in json.loads(found)["error"]:
        raise AssertionError(f"{path} {body[:60]!r}: {status}, expected {due}: {found[:200]!r}")
    return str(status)


def budget(load: Load) -> str:
    body = {"budget": load.draw.choice(BUDGETS)}
    status, found = load.request("POST", "/v1/expert_cache", json.dumps(body).encode())
    if status not in (200, 429):
        raise AssertionError(found)
    return str(status)


def watch(load: Load) -> str:
    for path in ("/health", "/metrics", "/v1/expert_cache", "/v1/models", "/"):
        status, found = load.request("GET", path)
        if status != 200:
            raise AssertionError(f"{path}: {status} {found[:200]!r}")
    return "200"


def read_fault(load: Load) -> str:
    """A stream during which the checkpoint becomes unreadable ends in an error that names the file."""
    given: Any = {"model": MODEL, "prompt": "Once upon a time", "max_tokens": 400, "stream": True}
    events = iter(load.client.completions.create(**given))
    next(events)
    with load.unreadable():
        try:
            for _ in events:
                pass
        except openai.APIError as error:
            if "safetensors" not in str(error):
                raise
            return "error in the stream"
        finally:
            load.over.wait(FAULT_SECONDS)
    return "all experts were there"


class Clients(NamedTuple):
    """How many clients of a kind there are, and how long each waits between two requests."""

    ask: Callable[[Load], str]
    count: int
    pause_seconds: float


def clients_of(pause: float) -> dict[str, Clients]:
    """Kind -> its clients; `pause` scales how long they wait."""
    return {
        "chat": Clients(chat, 2, 4 * pause),
        "stream": Clients(stream, 2, 4 * pause),
        "complete": Clients(complete, 2, 4 * pause),
        "short": Clients(short, 6, 0.02 * pause),
        "killed": Clients(killed, 1, 5 * pause),
        "slow reader": Clients(slow_reader, 3, 2 * pause),
        "crowd": Clients(crowd, 1, 30 * pause),
        "bad": Clients(bad, 1, 1 * pause),
        "budget": Clients(budget, 1, 10 * pause),
        "watch": Clients(watch, 1, 1 * pause),
        "read fault": Clients(read_fault, 1, 30 * pause),
    }


def put_on(load: Load, seconds: float, pause: float) -> None:
    """All clients at once for so long; returns when each has ended its last request."""
    load.over.clear()
    threads = [
        threading.Thread(target=_ask_again_and_again, args=(load, kind, clients))
        for kind, clients in clients_of(pause).items()
        for _ in range(clients.count)
    ]
    for thread in threads:
        thread.start()
    load.over.wait(seconds)
    load.over.set()
    for thread in threads:
        thread.join()


def _ask_again_and_again(load: Load, kind: str, clients: Clients) -> None:
    while not load.over.is_set() and load.process.poll() is None:
        load.run(kind, clients.ask)
        load.over.wait(load.draw.uniform(0.5, 1.5) * clients.pause_seconds)


def put_on_short_requests(load: Load, count: int) -> None:
    """So many answers of one token over one connection, one after the other."""
    body = json.dumps({"model": MODEL, "prompt": "Once", "max_tokens": 1}).encode()
    connection = http.client.HTTPConnection("127.0.0.1", load.port, timeout=300)
    with contextlib.closing(connection):
        for _ in range(count):
            connection.request("POST", "/v1/completions", body, {"Content-Type": "application/json"})
            answer = connection.getresponse()
            answer.read()
            load.counts[f"one after the other: {answer.status}"] += 1


def make_model(folder: Path, source: str) -> None:
    """A copy of a checkpoint and a random adapter of it."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    shutil.copytree(source, folder / MODEL)
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_pretrained(folder / MODEL)
    settings = LoraConfig(r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    get_peft_model(model, settings).save_pretrained(str(folder / ADAPTER))


def start_server(folder: Path) -> tuple[subprocess.Popen, int]:
    command = [sys.executable, "-m", "dwellmoe", "serve", folder / MODEL, "--adapter", folder / ADAPTER]
    command += ["--port", "0", "--expert_budget", BUDGET, "--dtype", "float32"]
    with open(folder / "stderr", "wb") as errors:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True, cwd=ROOT)
    assert process.stdout
    line = process.stdout.readline()
    port = line.partition("127.0.0.1:")[2].partition("/")[0]
    assert port.isdigit(), (folder / "stderr").read_text()
    return process, int(port)


def measure(args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    process, port = start_server(folder)
    try:
        load = Load(folder, process, port, args.seed)
        load.until_idle()
        answers = {name: answer_of(load, name) for name in (MODEL, ADAPTER)}
        put_on(load, args.warm_up_minutes * 60, args.pause)
        samples = [load.sample()]
        load.counts.clear()
        began = time.perf_counter()
        for _ in range(args.stops):
            put_on(load, args.minutes * 60 / args.stops, args.pause)
            samples.append(load.sample())
            print(f"{(time.perf_counter() - began) / 60:.1f} min: {samples[-1]}", flush=True)
        put_on_short_requests(load, args.short_requests)
        after_short = load.sample()
        print(f"after {args.short_requests} short requests: {after_short}", flush=True)
        same = {name: answer_of(load, name) == text for name, text in answers.items()}
        process.send_signal(signal.SIGTERM)
        stopped = process.wait(60)
    finally:
        process.kill()
        process.wait()
    errors = (folder / "stderr").read_text()
    return {
        "counts": dict(sorted(load.counts.items())),
        "requests": load.counts.total(),
        "unexpected": load.unexpected,
        "samples": [sample._asdict() for sample in samples],
        "after_short_requests": after_short._asdict(),
        "answers_as_before": same,
        "exit_code": stopped,
        "standard_error": errors[-2000:],
    }


def faults_of(found: dict[str, Any]) -> list[str]:
    """What is wrong after the load; empty where nothing is."""
    samples, after_short = found["samples"], found["after_short_requests"]
    wrong = [f"unexpected: {each}" for each in found["unexpected"][:5]]
    for before, after in ((samples[len(samples) // 2], samples[-1]), (samples[-1], after_short)):
        growth = after["resident_bytes"] - before["resident_bytes"]
        if growth > MOST_GROWTH_BYTES:
            wrong.append(f"memory grew by {growth / 1e6:.1f} MB")
    for name in ("threads", "files"):
        if after_short[name] > samples[0][name]:
            wrong.append(f"{name}: {samples[0][name]} before, {after_short[name]} after")
    if found["counts"].get("one after the other: 200", 0) < found["settings"]["short_requests"]:
        wrong.append("short requests without an answer")
    if not all(found["answers_as_before"].values()):
        wrong.append("other answers than before")
    if found["exit_code"] or "Traceback" in found["standard_error"]:
        wrong.append(f"exit code {found['exit_code']}: {found['standard_error'][-300:]}")
    return wrong


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("--model_name", default="models/tiny-olmoe", help="a checkpoint in one file")
    parser.add_argument("--minutes", type=float, default=20)
    parser.add_argument("--warm_up_minutes", type=float, default=2)
    parser.add_argument("--short_requests", type=int, default=10_000)
    parser.add_argument("--stops", type=int, default=4, help="times at which the load rests and is measured")
    parser.add_argument("--pause", type=float, default=1.0, help="scales how long clients wait")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        make_model(Path(folder), args.model_name)
        found = measure(args, Path(folder))
    found = {"schema_version": 1, "made": provenance(), "settings": vars(args), **found}
    wrong = faults_of(found)
    save_result(found | {"faults": wrong}, args.json)
    for each in [*(f"{name}: {count}" for name, count in found["counts"].items()), *wrong]:
        print(each)
    sys.exit(bool(wrong))


if __name__ == "__main__":
    run_command(main)
