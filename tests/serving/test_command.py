"""`dwellmoe serve` as users start it: its command line, OpenAI's client, bad clients, stop signals."""

import http.client
import json
import signal
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from urllib.request import urlopen

import pytest

from dwellmoe.cli.main import run
from dwellmoe.cli.serve import parse_options
from dwellmoe.errors import UserError
from dwellmoe.serving.command_line import adapter_folders, check
from dwellmoe.serving.listening import listening_socket
from dwellmoe.serving.settings import ServingSettings
from tests.conftest import ROOT, command_environment
from tests.warm_python import Forked


@pytest.mark.parametrize(
    ("words", "named"),
    [
        ("--port 8000", "MODEL"),
        ("{folder}/nothing", "nothing"),
        ("{folder}/model --adapter {folder}/nothing", "nothing"),
        ("{folder}/model --adapter {folder}/model", "adapter"),
        ("{folder}/model --adapter {folder}/control --adapter {folder}/control", "control.*NAME=FOLDER"),
        ("{folder}/model --adapter model={folder}/control", "model.*taken"),
        ("{folder}/model --adapter a/b={folder}/control", "a/b"),
        ("{folder}/model --adapter", "--adapter"),
        ("{folder}/model --routing_strategy margin", "--expert_budget"),
        ("{folder}/model --expert_budget 25% --routing_strategy magrin", "magrin"),
        ("{folder}/model --expert_budget lots", "--expert_budget lots"),
        ("{folder}/model --port 70000", "--port 70000"),
        ("{folder}/model --prot 80", "--prot.*--port"),
        ("{folder}/model --max_waiting -1", "--max_waiting -1"),
        ("{folder}/model {folder}/model", "stray"),
    ],
)
def test_a_mistake_is_named_before_anything_is_loaded(folder, words, named):
    with pytest.raises(UserError, match=named):
        check(parse_options(words.format(folder=folder).split()))


@pytest.mark.parametrize("command", ["serve", "chat"])
def test_help_begins_with_a_command_that_works(command, capsys):
    with pytest.raises(SystemExit):
        run([command, "--help"])
    assert f"usage: dwellmoe {command} MODEL" in capsys.readouterr().out


def test_an_api_key_that_no_header_can_carry(folder):
    for key in ("two words", "schlüssel"):
        with pytest.raises(UserError, match="--api_key"):
            parse_options([str(folder / "model"), "--api_key", key])


def test_the_environment_gives_the_api_key(folder, monkeypatch):
    monkeypatch.setenv("DWELLMOE_API_KEY", "secret")
    assert parse_options([str(folder / "model"), "--port", "0"]).own.api_key == "secret"


def test_adapters_are_named_by_folder_or_as_given(folder):
    found = adapter_folders([f"{folder}/control", f"best={folder}/tuned"], f"{folder}/model")
    assert found == {"control": f"{folder}/control", "best": f"{folder}/tuned"}


def test_a_link_is_known_by_its_own_name(folder, tmp_path):
    for name in ("best", "mine"):
        (tmp_path / name).symlink_to(folder / "control")
    found = adapter_folders([f"{tmp_path}/best", f"{tmp_path}/mine/."], f"{folder}/model")
    assert [*found] == ["best", "mine"]


def test_options_of_a_cache_without_one_are_said(folder, capsys):
    options = parse_options([str(folder / "model"), "--decode_policy", "lfu"])
    assert options.engine is None and "--decode_policy" in capsys.readouterr().err


def test_a_port_in_use_and_an_address_of_another_machine():
    with listening_socket(ServingSettings(port=0)) as taken:
        taken.listen()
        with pytest.raises(UserError, match=f"--port {taken.getsockname()[1]}.*in use"):
            listening_socket(ServingSettings(port=taken.getsockname()[1]))
    for host in ("203.0.113.1", "no such host", "é" * 70):
        with pytest.raises(UserError, match="--host"):
            listening_socket(ServingSettings(host=host, port=0))


class Running:
    """A server in a process of its own."""

    def __init__(self, process: Forked, address: tuple[str, int]) -> None:
        self.process, self.address = process, address
        self.url = f"http://{address[0]}:{address[1]}"

    def get(self, path: str):
        with urlopen(self.url + path, timeout=20) as answer:
            return answer.read().decode()

    def busy(self) -> int:
        queue = json.loads(self.get("/v1/expert_cache"))["queue"]
        return queue["running"] + queue["waiting"]

    def until_idle(self) -> None:
        for _ in range(200):
            if not self.busy():
                return
            time.sleep(0.05)
        raise AssertionError("a slot was not given back within 10 s")

    def memory_bytes(self) -> int:
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return 1024 * int(status.partition("VmRSS:")[2].split()[0])

    def raw(self, body: dict, path="/v1/chat/completions") -> socket.socket:
        """A connection that has sent a request and read nothing."""
        data = json.dumps(body).encode()
        connection = socket.create_connection(self.address, timeout=20)
        head = f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
        connection.sendall(f"{head}Content-Length: {len(data)}\r\n\r\n".encode() + data)
        return connection


@pytest.fixture(scope="session")
def running(warm_python, tmp_path_factory):
    """Serves a model with more options in a process of its own."""

    @contextmanager
    def serve(model: str, *words: str) -> Iterator[Running]:
        command = ["-m", "dwellmoe", "serve", model, "--port", "0", "--expert_budget", "50%"]
        folder = tmp_path_factory.mktemp("server")
        process = warm_python.start(
            [*command, "--prefill_buffer", "2", *words], folder, command_environment(folder)
        )
        try:
            line = process.stdout.readline()
            assert " at http://127.0.0.1:" in line, line + process.stderr.read()
            port = int(line.partition("127.0.0.1:")[2].partition("/")[0])
            yield Running(process, ("127.0.0.1", port))
        finally:
            process.end()

    return serve


@pytest.fixture(scope="module")
def server(folder, running):
    with running(f"{folder}/model", "--adapter", f"{folder}/control", "--dtype", "float32") as found:
        yield found
        assert found.process.poll() is None, "the server died"


@pytest.fixture
def openai_client(server):
    import openai

    return openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0, timeout=60)


LONG = {
    "model": "model",
    "messages": [{"role": "user", "content": "w1 w2"}],
    "max_tokens": 100,
    "stream": True,
}


@pytest.mark.slow
def test_openais_client(openai_client):
    import openai

    client = openai_client
    assert [model.id for model in client.models.list()] == ["model", "control"]
    assert client.models.retrieve("control").id == "control"
    asked = {"model": "control", "messages": [{"role": "user", "content": "w1 w2"}], "max_tokens": 6}
    whole = client.chat.completions.create(**asked)
    streamed = list(client.chat.completions.create(**asked, stream=True))
    text = "".join(chunk.choices[0].delta.content or "" for chunk in streamed)
    assert text.strip() == whole.choices[0].message.content.strip()
    assert streamed[-1].choices[0].finish_reason == whole.choices[0].finish_reason
    completion = client.completions.create(model="model", prompt="w1 w2", max_tokens=6)
    pieces = client.completions.create(model="model", prompt="w1 w2", max_tokens=6, stream=True)
    assert "".join(piece.choices[0].text for piece in pieces).strip() == completion.choices[0].text.strip()
    response = client.responses.create(model="model", input="w1 w2", max_output_tokens=6)
    last = [*client.responses.create(model="model", input="w1 w2", max_output_tokens=6, stream=True)][-1]
    assert last.response.output_text == response.output_text
    with pytest.raises(openai.NotFoundError, match="choose from model, control"):
        client.chat.completions.create(**asked | {"model": "other"})
    with pytest.raises(openai.BadRequestError, match="max_tokens") as refused:
        client.chat.completions.create(**asked | {"max_tokens": -1})
    assert refused.value.param == "max_tokens"


@pytest.mark.slow
def test_a_hundred_clients_at_once_get_an_answer_or_are_told_to_wait(server, openai_client):
    import openai

    def ask(number):
        try:
            asked = [{"role": "user", "content": f"w{number}"}]
            openai_client.chat.completions.create(model="model", messages=asked, max_tokens=3)
            return 200
        except openai.RateLimitError as error:
            return error.status_code

    with ThreadPoolExecutor(100) as pool:
        statuses = list(pool.map(ask, range(100)))
    assert {*statuses} <= {200, 429} and statuses.count(200) >= 17
    server.until_idle()


@pytest.mark.slow
@pytest.mark.parametrize("read_bytes", [0, 1, 300])
def test_a_client_that_is_gone_frees_its_slot(server, read_bytes):
    connection = server.raw(LONG)
    if read_bytes:
        connection.recv(read_bytes)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    connection.close()  # resets the connection, as the kernel does for a client that was killed
    server.until_idle()


@pytest.mark.slow
def test_slow_readers_and_slow_senders_hold_no_slot(server, openai_client):
    reader = server.raw(LONG)
    sender = socket.create_connection(server.address)
    sender.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 50\r\n")
    for _ in range(3):
        reader.recv(1)
        sender.sendall(b"X")
        time.sleep(0.1)
    server.until_idle()
    assert openai_client.completions.create(model="model", prompt="w1", max_tokens=2).choices
    reader.close()
    sender.close()


@pytest.mark.slow
def test_a_connection_outlives_the_five_seconds_that_clients_keep_theirs(server):
    connection = http.client.HTTPConnection(*server.address, timeout=20)
    for pause_seconds in (5.5, 0):
        connection.request("GET", "/health")
        assert connection.getresponse().read()
        first = connection.sock
        time.sleep(pause_seconds)
    assert connection.sock is first, "it was closed, and opened anew"
    connection.close()


@pytest.mark.slow
def test_memory_stays_flat(server, openai_client):
    def ask(times):
        for number in range(times):
            openai_client.completions.create(
                model=("model", "control")[number % 2], prompt="w1", max_tokens=1
            )

    ask(60)
    before = server.memory_bytes()
    ask(120)
    assert server.memory_bytes() - before < 4 << 20


@pytest.mark.slow
@pytest.mark.parametrize("garbage", [b"\0" * 100, b"GET / HTTP/9\r\n\r\n", b"POST " + b"x" * 100_000])
def test_bytes_that_are_not_http(server, garbage):
    with socket.create_connection(server.address, timeout=20) as connection:
        connection.sendall(garbage)
        connection.shutdown(socket.SHUT_WR)
        connection.recv(1000)
    assert json.loads(server.get("/health")) == {"status": "ok"}


@pytest.mark.slow
@pytest.mark.parametrize(("number", "stop_seconds"), [(signal.SIGTERM, "0"), (signal.SIGINT, "60")])
def test_a_stop_signal_ends_or_cuts_what_runs_and_exits_clean(running, number, stop_seconds):
    model = str(ROOT / "models" / "tiny-olmoe")
    body = {"model": "tiny-olmoe", "prompt": "Once upon a time", "max_tokens": 200, "stream": True}
    with running(model, "--stop_seconds", stop_seconds) as found:
        connection = found.raw(body, "/v1/completions")
        received = [connection.recv(200)]
        waiting = found.raw(body | {"stream": False}, "/v1/completions")
        time.sleep(0.1)
        found.process.send_signal(number)
        rest = threading.Thread(target=_read_all, args=(connection, received), daemon=True)
        rest.start()
        assert found.process.wait(60) == 0
        rest.join(10)
        text = b"".join(received).decode()
        assert ("the server is stopping" if stop_seconds == "0" else "finish_reason") in text
        assert "[DONE]" in text and b" 503 " in waiting.recv(1000)
        written, said = found.process.communicate(240)
        assert written == "stopped\n" and "Traceback" not in said


def _read_all(connection: socket.socket, received: list) -> None:
    while data := connection.recv(65_536):
        received.append(data)
