"""The routes, in process: answers are those of the model in memory, faults are answers too."""

import asyncio
import gc
import json
import os
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from dwellmoe.data.wording import Wording
from dwellmoe.loading import active_variant
from dwellmoe.serving.errors import RequestError
from tests.data.stand_ins import WORDS

CONTEXT = 128
PROMPT = "w1 w2 w3"


@pytest.fixture(scope="session")
def in_memory(folder):
    """The model with its adapters, without an engine."""
    from dwellmoe.evaluation.load import load_with_adapters
    from dwellmoe.settings.model import ModelSettings

    settings = ModelSettings(model_name=str(folder / "model"), dtype="float32")
    return load_with_adapters(
        settings, None, {"tuned": str(folder / "tuned" / "checkpoint-10"), "control": str(folder / "control")}
    )


def expected(in_memory, text, adapter="base", new_tokens=8) -> str:
    ids = in_memory.tokenizer(text, return_tensors="pt")
    with active_variant(in_memory.model, adapter), torch.no_grad():
        found = in_memory.model.generate(**ids, max_new_tokens=new_tokens, do_sample=False)
    return in_memory.tokenizer.decode(found[0, ids["input_ids"].shape[1] :], skip_special_tokens=True)


def chat(client, text=PROMPT, model="model", **more):
    body = {"model": model, "messages": [{"role": "user", "content": text}], "max_tokens": 8, **more}
    return client.post("/v1/chat/completions", json=body)


def complete(client, prompt=PROMPT, **more):
    return client.post("/v1/completions", json={"model": "model", "prompt": prompt, "max_tokens": 8, **more})


def events(response) -> list:
    """The events of a stream, without the last one."""
    lines = [line.removeprefix("data: ") for line in response.text.split("\n\n") if line]
    assert lines[-1] == "[DONE]"
    return [json.loads(line) for line in lines[:-1]]


def streamed_text(response) -> str:
    return "".join(event["choices"][0]["delta"].get("content") or "" for event in events(response))


def fault(response, status: int) -> dict:
    assert response.status_code == status, response.text
    found = response.json()["error"]
    assert found["message"] and found["type"]
    return found


WORDINGS = [("model", "base", f"w90 {PROMPT} w91"), ("tuned", "tuned", f"w90 {PROMPT} w91")]
WORDINGS += [("control", "control", f"w7 {PROMPT} w8")]


@pytest.mark.parametrize(("model", "adapter", "worded"), WORDINGS)
def test_each_name_answers_as_its_adapter_in_the_words_that_trained_it(
    client, in_memory, model, adapter, worded
):
    text = expected(in_memory, worded, adapter)
    answer = chat(client, model=model).json()
    assert answer["choices"][0]["message"] == {"role": "assistant", "content": text}
    assert answer["model"] == model and answer["id"].startswith("chatcmpl-")
    assert answer["usage"]["prompt_tokens"] == len(worded.split())
    assert streamed_text(chat(client, model=model, stream=True)).strip() == text.strip()


def test_a_conversation_goes_through_the_template(client, in_memory):
    messages = [
        {"role": "developer", "content": "w5"},
        {"role": "user", "content": [{"type": "text", "text": "w1"}, {"type": "text", "text": "w2"}]},
        {"role": "assistant", "content": "w3", "tool_calls": None, "refusal": None},
        {"role": "user", "content": "w4"},
    ]
    answer = client.post(
        "/v1/chat/completions", json={"model": "model", "messages": messages, "max_tokens": 8}
    )
    text = expected(in_memory, "w92 w5 w90 w1 w2 w91 w3 w90 w4 w91")
    assert answer.json()["choices"][0]["message"]["content"] == text


def test_options_and_tools_reach_the_template(client):
    tool = {"type": "function", "function": {"name": "w1", "parameters": {}}}
    asked = [chat(client), chat(client, tools=[tool])]
    asked += [chat(client, chat_template_kwargs={"enable_thinking": True})]
    assert [answer.json()["usage"]["prompt_tokens"] for answer in asked] == [5, 6, 6]
    for name in ("tokenize", "chat_template", "truncation", "conversation"):
        found = fault(chat(client, chat_template_kwargs={name: True}), 400)
        assert found["param"] == "chat_template_kwargs"
    assert fault(chat(client, model="control", tools=[tool]), 400)["param"] == "tools"


@pytest.mark.parametrize("prompt", [PROMPT, [PROMPT], [5, 6, 7]])
def test_completions_take_the_prompt_as_it_is(client, in_memory, prompt):
    text = expected(in_memory, PROMPT)
    assert complete(client, prompt).json()["choices"][0]["text"] == text
    streamed = events(complete(client, prompt, stream=True))
    assert "".join(event["choices"][0]["text"] for event in streamed).strip() == text.strip()
    assert streamed[-1]["usage"]["prompt_tokens"] == 3


def test_an_answer_ends_before_the_stop_text(client):
    whole = complete(client, max_tokens=16).json()["choices"][0]["text"]
    stop = whole.split()[4]
    before = whole[: whole.index(stop)]
    for answer in (
        complete(client, max_tokens=16, stop=stop),
        complete(client, max_tokens=16, stop=["?", stop]),
    ):
        choice = answer.json()["choices"][0]
        assert (choice["text"].strip(), choice["finish_reason"]) == (before.strip(), "stop")
    text = "".join(
        event["choices"][0]["text"]
        for event in events(complete(client, max_tokens=16, stop=stop, stream=True))
    )
    assert text.strip() == before.strip()


def test_the_same_seed_gives_the_same_answer(client):
    def answer(seed):
        return complete(client, temperature=2.0, seed=seed, max_tokens=12).json()["choices"][0]["text"]

    assert answer(1) == answer(1)
    assert len({answer(seed) for seed in range(4)}) > 1


def test_responses(client, in_memory):
    body = {"model": "model", "input": PROMPT, "instructions": "w5", "max_output_tokens": 8}
    text = expected(in_memory, f"w92 w5 w90 {PROMPT} w91")
    answer = client.post("/v1/responses", json=body).json()
    assert answer["output"][0]["content"][0]["text"] == text
    streamed = client.post("/v1/responses", json=body | {"stream": True})
    kinds = [json.loads(line[6:])["type"] for line in streamed.text.split("\n\n") if line]
    assert kinds[-1] == "response.completed" and "response.output_text.delta" in kinds


def test_models(client):
    listed = client.get("/v1/models").json()["data"]
    assert [model["id"] for model in listed] == ["model", "tuned", "control"]
    assert client.get("/v1/models/tuned").json()["id"] == "tuned"
    assert fault(client.get("/v1/models/other"), 404)["code"] == "model_not_found"


@pytest.mark.parametrize(
    "name", ["other", "../model", "/etc/passwd", "org/name", "model@main", "m:x.gguf", ""]
)
def test_no_name_reaches_hub_or_files(client, name, monkeypatch):
    opened = []
    monkeypatch.setattr("builtins.open", lambda *given, **_: opened.append(given))
    monkeypatch.setattr(os, "stat", lambda *given, **_: opened.append(given))
    found = fault(chat(client, model=name), 404)
    assert found["code"] == "model_not_found" and "tuned" in found["message"] and not opened


@pytest.mark.parametrize(
    "path", ["/load_model", "/reset", "/v1/audio/transcriptions", "/v1/systemone", "/docs", "/static/../x"]
)
def test_nothing_else_is_served(client, path):
    assert client.post(path, json={"model": "x"}).status_code == 404


def test_a_wrong_method_is_an_error_of_the_same_shape(client):
    fault(client.get("/v1/chat/completions"), 405)


@pytest.mark.parametrize("max_tokens", [CONTEXT, 10**6, 10**30])
def test_more_tokens_than_the_context_holds_are_refused(client, max_tokens):
    found = fault(complete(client, max_tokens=max_tokens), 400)
    assert found["code"] == "context_length_exceeded" and str(CONTEXT) in found["message"]


def test_a_prompt_longer_than_the_context(client):
    found = fault(complete(client, "w1 " * 200), 400)
    assert found["code"] == "context_length_exceeded" and "200" in found["message"]


def test_an_answer_may_fill_the_context(client):
    prompt = "w1 " * (CONTEXT - 5)
    used = complete(client, prompt, max_tokens=None).json()["usage"]
    assert used["completion_tokens"] <= 6
    assert complete(client, prompt, max_tokens=6).status_code == 200


@pytest.mark.parametrize("prompt", ["", [], [10**9], [-1], [len(WORDS)]])
def test_prompts_without_tokens_or_with_unknown_ones(client, prompt):
    fault(complete(client, prompt), 400)


@pytest.mark.parametrize(
    ("content", "headers", "status"),
    [
        (b"{", {}, 400),
        (b'{"model": "\xff"}', {}, 400),
        (b"{}", {}, 400),
        (b"{}", {"content-type": "text/plain"}, 415),
        (b" " * (4 << 20) + b"{}", {}, 413),
        ([b" " * (1 << 20)] * 5, {}, 413),
    ],
)
@pytest.mark.parametrize(
    "path", ["/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/expert_cache"]
)
def test_bodies_that_cannot_be(client, path, content, headers, status):
    given = {"content-type": "application/json"} | headers
    stream = iter(content) if isinstance(content, list) else content
    fault(client.post(path, content=stream, headers=given), status)
    assert client.get("/health").status_code == 200


def test_a_token_is_asked_for(service):
    from starlette.testclient import TestClient

    from dwellmoe.serving.app import application

    service.settings.api_key = "secret"
    client = TestClient(application(service))
    for path in ("/v1/models", "/metrics", "/v1/expert_cache"):
        for given in ("", "Bearer secre", "secret", "Bearer", "Bearer ", "Basic secret", "Bearer sécret"):
            header = {b"authorization": given.encode()} if given else None
            assert fault(client.get(path, headers=header), 401)["code"] == "invalid_api_key"
        for scheme in ("Bearer", "bearer"):
            assert client.get(path, headers={"authorization": f"{scheme} secret"}).status_code == 200
    assert client.get("/health").status_code == client.get("/").status_code == 200


def sample(client, name: str) -> float:
    lines = client.get("/metrics").text.splitlines()
    return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith(name))


def test_metrics_count_what_was_answered(client):
    before = sample(client, "dwellmoe_generated_tokens_total")
    used = complete(client, "w1 w2 w3 w4", max_tokens=9).json()["usage"]
    assert sample(client, "dwellmoe_generated_tokens_total") - before == used["completion_tokens"]
    assert sample(client, "dwellmoe_prompt_tokens_total") == 4
    assert sample(client, "dwellmoe_time_to_first_token_seconds_count") == 1
    assert sample(client, "dwellmoe_time_per_output_token_seconds_count") == used["completion_tokens"] - 1
    assert sample(client, 'dwellmoe_requests_total{path="/v1/completions",status="200"}') == 1
    assert sample(client, "dwellmoe_expert_disk_bytes_total") > 0
    assert sample(client, "dwellmoe_requests_running") == sample(client, "dwellmoe_requests_waiting") == 0
    fault(client.get("/a/path/of/no/end"), 404)
    assert 'path="/a' not in client.get("/metrics").text


def test_figures_say_what_is_resident_and_what_the_last_answer_took(client, served):
    answer = complete(client).json()
    found = client.get("/v1/expert_cache").json()
    cache, last = found["expert_cache"], found["last_answer"]
    assert (cache["capacity"], cache["experts"], cache["layers"]) == (2, 8, 3)
    assert all(sum(row) >= 2 for row in cache["on_device"])
    assert len(last["tokens"]) == len(last["fetched"]) == answer["usage"]["completion_tokens"]
    assert "".join(last["tokens"]).strip() == answer["choices"][0]["text"].strip()
    assert last["seconds"] == sorted(last["seconds"]) and sum(last["fetched"]) > 0


@pytest.mark.parametrize("budget", ["4", "100%", "50%", "2"])
def test_the_budget_changes_while_it_serves(client, served, budget, in_memory):
    before = sample(client, "dwellmoe_expert_disk_loads_total")
    cache = client.post("/v1/expert_cache", json={"budget": budget}).json()["expert_cache"]
    assert cache["expert_budget"] == budget == served.engine.settings.expert_budget
    assert complete(client).json()["choices"][0]["text"] == expected(in_memory, PROMPT)
    assert sample(client, "dwellmoe_expert_disk_loads_total") > before


@pytest.mark.parametrize("budget", ["0", "1", "-5%", "900%", "1KiB", "lots"])
def test_a_budget_that_cannot_work_changes_nothing(client, served, budget):
    memory = served.engine.memory
    found = fault(client.post("/v1/expert_cache", json={"budget": budget}), 400)
    assert found["param"] == "budget" and served.engine.memory == memory
    assert complete(client).status_code == 200


def test_a_budget_that_gets_no_memory_changes_nothing(client, served, monkeypatch):
    def out_of_memory(*_):
        raise MemoryError

    monkeypatch.setattr("dwellmoe.serving.app.resize", out_of_memory)
    fault(client.post("/v1/expert_cache", json={"budget": "4"}), 503)
    assert complete(client).status_code == 200


def failing(*_):
    raise OSError(5, "Input/output error")


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("ask", [chat, complete])
def test_a_disk_that_fails_ends_one_answer_and_not_the_server(
    client, served, service, ask, stream, monkeypatch
):
    served.engine.reset()
    with monkeypatch.context() as patched:
        patched.setattr(served.engine._storage, "read", failing)
        answer = ask(client, stream=stream)
    if stream:
        assert answer.status_code == 200
        error = events(answer)[-1]["error"]
    else:
        error = fault(answer, 500)
    assert "expert" in error["message"] and "safetensors" in error["message"]
    assert not service.queue.places
    assert ask(client).status_code == 200


def test_a_body_that_is_far_too_large_is_not_read_to_its_end(client, monkeypatch):
    monkeypatch.setattr("dwellmoe.serving.body.MOST_DISCARDED_BYTES", 8 << 20)
    pieces = (b" " * (1 << 20) for _ in range(10))
    fault(client.post("/v1/completions", content=pieces, headers={"content-type": "application/json"}), 413)


def test_a_stream_of_responses_fails_with_an_event_of_its_own(client, served, monkeypatch):
    served.engine.reset()
    body = {"model": "model", "input": PROMPT, "stream": True}
    with monkeypatch.context() as patched:
        patched.setattr(served.engine._storage, "read", failing)
        answer = client.post("/v1/responses", json=body)
    assert json.loads(answer.text.split("\n\n")[-2][6:])["type"] == "response.failed"


def departing(app, body: dict, after: int) -> list:
    """What the application sends to a client that leaves after so many messages to it."""
    data = json.dumps({"model": "model", "prompt": PROMPT, **body}).encode()
    sent = []

    async def drive():
        left = asyncio.Event()
        messages = iter([{"type": "http.request", "body": data, "more_body": False}])

        async def receive():
            if message := next(messages, None):
                return message
            await left.wait()
            return {"type": "http.disconnect"}

        async def send(message):
            sent.append(message)
            if len(sent) >= after:
                left.set()
                await asyncio.sleep(0.02)

        if not after:
            left.set()
        scope = {"type": "http", "method": "POST", "path": "/v1/completions", "query_string": b""}
        scope |= {"headers": [(b"content-type", b"application/json")], "asgi": {"version": "3.0"}}
        await asyncio.wait_for(app(scope, receive, send), 20)

    asyncio.run(drive())
    return sent


@pytest.mark.parametrize(("stream", "after"), [(True, 3), (True, 1), (True, 0), (False, 0)])
def test_a_client_that_leaves_ends_its_generation(served, service, stream, after, monkeypatch):
    from dwellmoe.serving.app import application

    served.engine.reset()
    monkeypatch.setattr(served.evaluated.model.generation_config, "eos_token_id", None)
    departing(application(service), {"stream": stream, "max_tokens": 100}, after)
    service.queue.worker.submit(lambda: None).result(20)
    assert not service.queue.places
    assert served.engine.statistics.decode.tokens < 60


def test_a_client_that_leaves_while_it_waits_frees_its_place(service):
    from dwellmoe.serving.app import application

    release = threading.Event()
    with service.queue.place() as first:
        first.submit(lambda: (release.wait(20), list)[1], lambda reason: None)
        departing(application(service), {"max_tokens": 5}, 0)
        assert service.queue.places == {first}
        release.set()


def test_a_full_queue_is_said(client, service):
    with service.queue.place(), service.queue.place(), service.queue.place():
        answer = chat(client)
        assert fault(answer, 429)["code"] == "queue_full" and answer.headers["retry-after"]
    assert chat(client).status_code == 200


def test_refusals_start_no_threads(client):
    fault(client.get("/nothing"), 404)
    before = threading.active_count()
    with ThreadPoolExecutor(8) as pool:
        statuses = list(pool.map(lambda _: client.get("/nothing").status_code, range(40)))
    assert statuses == [404] * 40 and threading.active_count() == before


def test_a_server_that_stops_refuses(client, service):
    service.queue.close()
    assert fault(chat(client), 503)["code"] == "stopping"
    assert client.get("/health").status_code == 503


@pytest.mark.slow
def test_many_short_requests_leave_nothing_behind(client, service, served):
    def objects():
        gc.collect()
        return len(gc.get_objects())

    def ask(times):
        for number in range(times):
            complete(client, max_tokens=1 + number % 2, stream=bool(number % 3))

    ask(30)
    before = objects()
    ask(60)
    assert objects() - before < 200
    assert not served.engine.statistics.first_token_seconds
    assert not service.queue.places


def test_the_page_needs_nothing_from_elsewhere(client):
    page = client.get("/").text
    page = page.replace("http://www.w3.org/2000/svg", "")  # a name of elements, no address
    assert "<title>" in page and "http://" not in page and "https://" not in page and "src=" not in page


def test_wording_without_a_template_joins_the_messages():
    from dwellmoe.data.wording import conversation_prompt

    messages = [{"role": "user", "content": "w1"}, {"role": "assistant", "content": "w2"}]
    assert conversation_prompt(Wording(), messages, None) == "w1\nw2\n"


def test_a_second_change_of_the_budget_is_told_to_wait(service, served):
    release = threading.Event()

    async def change_two():
        service.queue.worker.submit(release.wait, 20)
        first = asyncio.create_task(service.change_budget("4"))
        await asyncio.sleep(0)
        with pytest.raises(RequestError) as refused:
            await service.change_budget("8")
        release.set()
        await first
        return refused.value

    assert asyncio.run(change_two()).status == 429
    assert served.engine.settings.expert_budget == "4"
    asyncio.run(service.change_budget("2"))
