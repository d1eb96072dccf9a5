"""What the live page asks for: figures since it asked last, and counts that cost nothing unwatched."""

import numpy as np
import pytest

from dwellmoe.serving import live_figures


@pytest.fixture(autouse=True)
def unwatched(served):
    served.engine.cached_experts.on_decode = None
    yield
    served.engine.cached_experts.on_decode = None


def complete(client, tokens=8):
    body = {"model": "model", "prompt": "w1 w2 w3", "max_tokens": tokens}
    return client.post("/v1/completions", json=body).json()


def live(client, **query):
    return client.get("/v1/live", params=query).json()


def test_only_the_tokens_that_were_not_seen_are_sent(client):
    written = complete(client)["usage"]["completion_tokens"]
    whole = live(client)["last_answer"]
    assert (whole["first"], whole["count"], len(whole["tokens"])) == (0, written, written)
    rest = live(client, answer=whole["number"], tokens=2)["last_answer"]
    assert rest["first"] == 2 and rest["tokens"] == whole["tokens"][2:]
    assert rest["fetched"] == whole["fetched"][2:] and rest["last_seconds"] == whole["last_seconds"]
    for query in (
        {"answer": whole["number"], "tokens": 10**6},
        {"answer": whole["number"], "tokens": written},
    ):
        assert live(client, **query)["last_answer"]["tokens"] == []
    complete(client)
    other = live(client, answer=whole["number"], tokens=written)["last_answer"]
    assert other["first"] == 0 and other["number"] == whole["number"] + 1


def test_a_long_answer_is_sent_from_its_end(client, monkeypatch):
    monkeypatch.setattr(live_figures, "MOST_TOKENS", 3)
    written = complete(client)["usage"]["completion_tokens"]
    found = live(client)["last_answer"]
    assert found["first"] == written - 3 and len(found["tokens"]) == 3


@pytest.mark.parametrize("query", ["answer=-1", "tokens=x", "tokens=1.5", f"answer={'9' * 30}", "tokens=²"])
def test_a_number_that_is_none_is_named(client, query):
    answer = client.get(f"/v1/live?{query}")
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == query.partition("=")[0]


def test_experts_are_where_the_engine_has_them(client, served):
    complete(client)
    engine, cache = served.engine, live(client)["expert_cache"]
    for layer, row in enumerate(cache["places"]):
        assert [digit == "2" for digit in row] == engine.resident(layer).tolist()
    device, disk = cache["tiers"]
    assert (device["experts"], device["slots"]) == (int(engine.memory_map()[0].sum()), 6)
    assert (disk["experts"], disk["bytes"]) == (24, 8 * sum(engine.record_bytes))


def test_uses_are_those_that_a_trace_records(client, served):
    before = np.array(live(client)["expert_cache"]["uses"])
    engine = served.engine
    engine.record()
    complete(client)
    trace, found = engine.trace(), np.array(live(client)["expert_cache"]["uses"]) - before
    decoded = trace.experts[trace.phase == 1]
    wanted = [np.bincount(decoded[:, layer].ravel(), minlength=8) for layer in range(3)]
    assert found.sum() > 0 and (found == wanted).all()


def test_nothing_is_counted_while_nobody_looks(client, served, monkeypatch):
    complete(client)
    assert served.engine.cached_experts.on_decode is None
    live(client)
    assert served.engine.cached_experts.on_decode is not None
    monkeypatch.setattr(live_figures, "WATCHED_SECONDS", 0.0)
    complete(client)
    assert served.engine.cached_experts.on_decode is None


def test_a_budget_that_is_being_changed_hides_the_cache_for_a_moment(client, service):
    with service.figures.changing:
        found = live(client)
    assert found["expert_cache"] is None and found["has_cache"]
    assert live(client)["expert_cache"]["capacity"] == 2


def test_a_token_is_asked_for(service):
    from starlette.testclient import TestClient

    from dwellmoe.serving.app import application

    service.settings.api_key = "secret"
    client = TestClient(application(service))
    assert client.get("/v1/live").status_code == 401
    assert client.get("/v1/live", headers={"authorization": "Bearer secret"}).status_code == 200


def test_no_page_of_another_site_may_show_this_one(client):
    assert client.get("/").headers["content-security-policy"] == "frame-ancestors 'none'"
