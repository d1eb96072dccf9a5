"""The live page in a real browser: what it shows, its chat, its keys, and what it makes of hostile text."""

import re
import socket
import time
from contextlib import contextmanager

import pytest

from tests.browser import SCHEMES, WIDTHS, check_page, focus_walk, view, visiting

pytestmark = pytest.mark.slow

HOSTILE = "<script>alert(1)</script><img src=x onerror=alert(2)>"


@contextmanager
def answering_at(service, port=0):
    """The address of a service, which runs on a thread of its own."""
    from serving import listening  # of benchmarks/

    with listening(service, port) as found:
        yield f"http://127.0.0.1:{found}/"


@pytest.fixture
def address(service):
    service.settings.max_new_tokens = 20  # conversations of some turns fit into the context
    with answering_at(service) as found:
        yield found


@pytest.fixture
def slow_tokens(monkeypatch):
    """A token takes 50 ms."""
    from dwellmoe.serving.figures import AnswerLog

    def add(self, piece, add=AnswerLog.add):
        time.sleep(0.05)
        add(self, piece)

    monkeypatch.setattr(AnswerLog, "add", add)


def ask(page, text: str) -> None:
    page.fill("#message", text)
    page.keyboard.press("Enter")


def answered(page) -> None:
    page.wait_for_selector("#send:enabled")


def has_text(page, selector: str, pattern: str) -> None:
    """Waits for it."""
    page.wait_for_function(
        "([selector, pattern]) => new RegExp(pattern).test(document.querySelector(selector).textContent)",
        arg=[selector, pattern],
    )


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("width", WIDTHS)
def test_it_is_readable_at_every_width_in_both_colours(browser, address, scheme, width):
    with visiting(browser, address, **view(scheme, width)) as page:
        has_text(page, "#state", "live")
        for text in ("w1 w2 w3", "w4 w5"):
            ask(page, text)
            answered(page)
            has_text(page, "#answer-about", "token")
            page.wait_for_timeout(1100)
        has_text(page, "#hit-rate-now", "%")
        page.wait_for_function("() => document.querySelectorAll('#tokens span').length > 2")
        check_page(page, f"live-{scheme}-{width}")


def test_its_figures_are_those_of_the_server(browser, address, service, served):
    with visiting(browser, address) as page:
        has_text(page, "#state", "live")
        page.wait_for_timeout(1200)  # counts are differences between two looks
        ask(page, "w1 w2 w3")
        answered(page)
        page.wait_for_timeout(1200)
        log, engine = service.figures.last, served.engine
        has_text(page, "#answer-about", f"model · {len(log.tokens)} tokens after a prompt of 5")
        assert page.locator("#tokens span").count() == len(log.tokens)
        resident = int(engine.memory_map()[0].sum())
        has_text(page, "#tiers", f"{resident} of 6 experts")
        assert page.locator("#model option").all_text_contents() == ["model", "tuned", "control"]
        page.locator("#map .cells").focus()
        page.keyboard.press("Home")
        place = "on the device" if engine.resident(0)[0] else "on disk"
        has_text(page, "#cell", f"layer 0, expert 0: {place}, used by")
        for key in ("ArrowDown", "ArrowRight", "ArrowRight"):
            page.keyboard.press(key)
        has_text(page, "#cell", "layer 1, expert 2: ")
        page.locator("#tokens").focus()
        page.keyboard.press("End")
        last = len(log.tokens)
        has_text(page, "#token-about", f"token {last}, .*: {log.fetched[-1]} of 6 experts fetched")
        page.locator("#bytes .plot").hover()
        assert re.search(r"\d (k|M)?B", page.locator("#bytes .tip").text_content())


@pytest.fixture
def long_answers(service, served, monkeypatch):
    monkeypatch.setattr(service.settings, "max_new_tokens", 100)
    monkeypatch.setattr(served.evaluated.model.generation_config, "eos_token_id", None)


def test_an_answer_comes_while_it_is_written_and_stops(browser, address, service, slow_tokens, long_answers):
    with visiting(browser, address) as page:
        has_text(page, "#state", "live")
        page.wait_for_selector("#model option", state="attached")
        for end in (lambda: page.click("#stop"), lambda: page.keyboard.press("Escape")):
            ask(page, "w1")
            has_text(page, "#log .turn:last-child .assistant", r"w\d+ .*w\d+")
            has_text(page, "#queue", "1 running")
            end()
            answered(page)
            has_text(page, "#log .turn:last-child .assistant footer", "stopped")
            service.queue.worker.submit(lambda: None).result(20)
            assert not service.queue.places and len(service.figures.last.tokens) < 100
        page.click("#new")
        assert page.locator("#log .turn").count() == 0


def test_the_conversation_goes_along(browser, address, service, monkeypatch):
    bodies = []
    with visiting(browser, address) as page:
        page.on(
            "request", lambda request: bodies.append(request.post_data_json) if request.post_data else None
        )
        page.wait_for_selector("#model option", state="attached")
        page.select_option("#model", "tuned")
        ask(page, "w1 w2")
        answered(page)
        reply = page.locator(".said.assistant").text_content()
        page.fill("#message", "w3")
        page.keyboard.press("Shift+Enter")
        page.keyboard.type("w4")
        page.keyboard.press("Enter")
        answered(page)
    assert [body["model"] for body in bodies] == ["tuned", "tuned"]
    said = [(message["role"], message["content"]) for message in bodies[1]["messages"]]
    assert said == [("user", "w1 w2"), ("assistant", reply), ("user", "w3\nw4")]


def test_all_of_it_is_in_reach_of_the_keyboard(browser, address):
    with visiting(browser, address) as page:
        has_text(page, "#state", "live")
        found = focus_walk(page)
        places = ["pause", "speed DIV", "hit-rate DIV", "bytes DIV", "waiting DIV", "model", "new", "log"]
        places += ["message", "send", "map DIV", "budget", "resize BUTTON", "tokens"]
        assert [place for place in found if place in places] == places
        ask(page, "w1")
        answered(page)
        page.locator("#speed .plot").focus()
        page.keyboard.press("ArrowLeft")
        assert page.locator("#speed .plot").get_attribute("aria-valuetext")
        page.locator("#pause").focus()
        page.keyboard.press("Enter")
        has_text(page, "#state", "paused")


def test_what_a_model_writes_stays_text(browser, address, monkeypatch):
    from dwellmoe.serving.generation import AnswerStreamer

    class Hostile:
        def step(self, *_):
            return HOSTILE

    def init(self, *given, init=AnswerStreamer.__init__, **named):
        init(self, *given, **named)
        self._decode_stream = Hostile()

    monkeypatch.setattr(AnswerStreamer, "__init__", init)
    with visiting(browser, address) as page:
        page.wait_for_selector("#model option", state="attached")
        ask(page, HOSTILE)
        answered(page)
        page.wait_for_function("() => document.querySelectorAll('#tokens span').length > 0")
        assert page.locator(".said.user").text_content() == HOSTILE
        assert page.locator(".said.assistant").text_content().startswith(HOSTILE)
        assert page.locator("#tokens span").first.text_content() == HOSTILE
        assert page.locator("body script, body img").count() == 0


def test_what_the_server_refuses_is_said_and_the_question_stays(browser, address, service):
    with visiting(browser, address, expected_errors="429|400") as page:
        page.wait_for_selector("#model option", state="attached")
        with service.queue.place(), service.queue.place(), service.queue.place():
            ask(page, "w1 w2")
            has_text(page, "#chat-error", "try again later")
            answered(page)
        assert page.input_value("#message") == "w1 w2" and page.locator(".turn").count() == 0
        ask(page, "w1 " * 500)
        has_text(page, "#chat-error", "context of 128")
        ask(page, "w1 w2")
        page.wait_for_selector(".said.assistant:not(.waiting)")
        assert not page.locator("#chat-error").is_visible()


def test_a_read_error_in_the_middle_of_an_answer_is_said(browser, address, served, monkeypatch):
    def failing(*_):
        raise OSError(5, "Input/output error")

    with visiting(browser, address) as page:
        page.wait_for_selector("#model option", state="attached")
        served.engine.reset()
        monkeypatch.setattr(served.engine._storage, "read", failing)
        ask(page, "w1 w2")
        has_text(page, "#chat-error", "expert")


def test_the_budget_changes(browser, address, served):
    with visiting(browser, address, expected_errors="400") as page:
        has_text(page, "#map-about", "Budget")
        for budget, said in (("4", "from now on"), ("900%", "900%"), ("2", "from now on")):
            page.fill("#budget", budget)
            page.keyboard.press("Enter")
            has_text(page, "#budget-state", said)
        has_text(page, "#map-about", "Budget 2: 2 of 8 experts a layer")
    assert served.engine.budget.capacity == 2


def test_a_server_with_a_token(browser, service):
    service.settings.api_key = "secret"
    with answering_at(service) as address, visiting(browser, address, expected_errors="401") as page:
        for given, state in (("wrong", "wants a token"), ("secret", "^live$")):
            page.fill("#token", given)
            page.click("#key button")
            has_text(page, "#state", state)
        ask(page, "w1")
        answered(page)
        assert page.locator(".said.assistant").count() == 1 and not page.locator("#key").is_visible()


def test_a_conversation_that_was_left_does_not_come_back(browser, address, slow_tokens, long_answers):
    with visiting(browser, address) as page:
        page.wait_for_selector("#model option", state="attached")
        ask(page, "w1")
        has_text(page, "#log .assistant", r"w\d+ .*w\d+")
        page.click("#new")
        answered(page)
        assert page.locator("#log .turn").count() == 0
        with page.expect_request("**/v1/chat/completions") as sent:
            ask(page, "w2")
        assert [message["content"] for message in sent.value.post_data_json["messages"]] == ["w2"]
        page.keyboard.press("Escape")
        answered(page)


def test_another_server_at_the_same_address_begins_anew(browser, served):
    from dwellmoe.serving.app import Service
    from dwellmoe.serving.settings import ServingSettings

    def answering(service):
        service.settings.max_new_tokens = 5
        return answering_at(service, port=port)

    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    first, second = (Service(served, ServingSettings()) for _ in range(2))
    context = browser.new_context()
    page = context.new_page()
    with answering(first) as address:
        page.goto(address)
        page.wait_for_selector("#model option", state="attached")
        ask(page, "w1 w2 w3")
        answered(page)
        has_text(page, "#answer-about", "prompt of 5")
    has_text(page, "#state", "does not answer")
    with answering(second):
        has_text(page, "#state", "^live$")
        ask(page, "w4")
        answered(page)
        page.wait_for_function(
            "count => document.querySelectorAll('#tokens span').length === count",
            arg=len(second.figures.last.tokens),
        )
    context.close()
    for service in (first, second):
        service.queue.end()


def test_a_server_that_ends_and_a_page_nobody_sees(browser, service):
    asked = []
    with answering_at(service) as address:
        context = browser.new_context()
        page = context.new_page()
        page.on("request", lambda request: asked.append(request.url))
        page.goto(address)
        has_text(page, "#state", "live")
        page.click("#pause")
        count = len(asked)
        page.wait_for_timeout(1500)
        assert len(asked) == count
        page.click("#pause")
        has_text(page, "#state", "live")
    has_text(page, "#state", "does not answer")
    context.close()


def test_a_model_in_memory_has_no_cache_to_show(browser, folder):
    from dwellmoe.cli.serve import parse_options
    from dwellmoe.serving.app import Service
    from dwellmoe.serving.served_model import load_served_model
    from dwellmoe.serving.settings import ServingSettings

    served = load_served_model(parse_options([str(folder / "model"), "--dtype", "float32"]))
    service = Service(served, ServingSettings())
    with answering_at(service) as address, visiting(browser, address, **view("light", 800)) as page:
        has_text(page, "#about", "model · 3 MoE layers of 8 experts, 2 for a token")
        ask(page, "w1")
        answered(page)
        has_text(page, "#answer-about", "token")
        assert page.locator("#no-cache").is_visible() and not page.locator("#map").is_visible()
        check_page(page, "live-in-memory-800")
    service.queue.end()


def test_without_a_script_it_says_where_the_figures_are(browser, address):
    with visiting(browser, address, script=False) as page:
        assert "v1/expert_cache" in page.locator("noscript").inner_html()
