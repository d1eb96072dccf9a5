"""Bodies that cannot be are refused by the field that is wrong."""

import pytest

from dwellmoe.serving.errors import RequestError
from dwellmoe.serving.requests import (
    BudgetRequest,
    ChatRequest,
    CompletionRequest,
    ResponseRequest,
    checked,
    read_object,
)

MESSAGES = [{"role": "user", "content": "w1"}]
CHAT = {"model": "m", "messages": MESSAGES}


@pytest.mark.parametrize(
    "data",
    [
        *(b"", b"{", b"[]", b'"x"', b"null", b'{"a": "\xff"}', b'{"a": "\\ud800"}', b"{" * 5000),
        *(b'{"a":' * 5000, b"\xfe\xff\x00{", b"{'a': 1}"),
    ],
)
def test_a_body_that_is_no_json_object(data):
    with pytest.raises(RequestError) as refused:
        read_object(data)
    assert refused.value.status == 400


@pytest.mark.parametrize("number", [b"1e999", b"-Infinity", b"NaN", b"1" * 400])
@pytest.mark.parametrize("field", ["temperature", "top_p", "seed"])
def test_numbers_that_are_none(field, number):
    body = b'{"model": "m", "prompt": "w1", "%s": %s}' % (field.encode(), number)
    with pytest.raises(RequestError) as refused:
        checked(CompletionRequest, read_object(body))
    assert refused.value.status == 400


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *(("max_tokens", value) for value in (0, -1, 1.5, "8", True, [])),
        *(("max_completion_tokens", value) for value in (0, -(10**30))),
        *(("temperature", value) for value in (-0.1, 2.1, "0", True, {})),
        *(("top_p", value) for value in (0, -1, 1.01, "1")),
        *(("seed", value) for value in (1.5, 2**63, "1", True)),
        *(("stop", value) for value in ("", 5, [""], ["a", 5], [None], {"a": 1}, ["a"] * 17, "a" * 1001)),
        *(("stream", value) for value in ("yes", 1, [])),
        *(("model", value) for value in (None, 5, ["m"])),
        *(("messages", value) for value in (None, [], {}, "w1", [5], [None], [[]])),
        ("messages", [{"content": "w1"}]),
        ("messages", [{"role": "stranger", "content": "w1"}]),
        ("messages", [{"role": "user", "content": 5}]),
        ("messages", [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "/etc"}}]}]),
        ("messages", [{"role": "user", "content": [{"type": "text"}]}]),
        ("tools", "w1"),
        ("chat_template_kwargs", []),
    ],
)
def test_a_field_that_cannot_be_is_named(field, value):
    with pytest.raises(RequestError) as refused:
        checked(ChatRequest, CHAT | {field: value})
    assert (refused.value.status, refused.value.param) == (400, field)


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("stop", ["a"] * 17, r"^stop: .*at most 16 items"),
        ("stop", ["a", 5], r"^stop\.1: .*string, found 5"),
        ("stop", 5, r"^stop: .*, found 5"),
        ("messages", [{"role": "user", "content": [{"type": "image_url"}]}], r"content\.0\.type: .*'text'"),
        ("messages", [{"role": "user", "content": [{"type": "text"}]}], r"content\.0\.text: Field required"),
    ],
)
def test_of_a_field_of_several_kinds_the_fault_that_says_most_is_told(field, value, words):
    with pytest.raises(RequestError, match=words):
        checked(ChatRequest, CHAT | {field: value})


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *(("n", 2), ("logprobs", True), ("presence_penalty", 0.5), ("frequency_penalty", -1)),
        *(("logit_bias", {"5": 1}), ("response_format", {"type": "json_object"}), ("suffix", "w1")),
        *(("generation_config", '{"max_new_tokens": 100000}'), ("tool_choice", "required"), ("echo", True)),
    ],
)
def test_what_would_change_the_answer_and_is_not_supported_is_refused(field, value):
    with pytest.raises(RequestError) as refused:
        checked(ChatRequest, CHAT | {field: value})
    assert (refused.value.param, refused.value.code) == (field, "unsupported_parameter")


@pytest.mark.parametrize("field", ["top_k", "min_p", "repetition_penalty", "Temperature", "", "x" * 10_000])
def test_a_field_that_no_request_has_is_named(field):
    with pytest.raises(RequestError) as refused:
        checked(ChatRequest, CHAT | {field: 5})
    assert refused.value.code == "unknown_parameter" and refused.value.param == field[:200]
    assert len(refused.value.message) < 300


def test_fields_of_another_kind_of_request_are_refused():
    for kind, body, field in (
        (
            CompletionRequest,
            {"model": "m", "prompt": "w1", "chat_template_kwargs": {}},
            "chat_template_kwargs",
        ),
        (ResponseRequest, {"model": "m", "input": "w1", "stop": "w5"}, "stop"),
    ):
        with pytest.raises(RequestError) as refused:
            checked(kind, body)
        assert (refused.value.status, refused.value.param) == (400, field)


def test_values_that_change_nothing_are_fine(capsys):
    harmless = {"n": 1, "logprobs": False, "presence_penalty": 0.0, "logit_bias": None, "user": "me"}
    harmless |= {"stream_options": {"include_usage": True}}
    found = checked(ChatRequest, CHAT | harmless | {"stop": "w5", "temperature": 0, "max_tokens": 3})
    assert (found.stops, found.new_tokens) == (["w5"], 3)
    assert "user" in capsys.readouterr().err


@pytest.mark.parametrize("prompt", ["w1", ["w1"], [5, 6], [], ""])
def test_prompts(prompt):
    checked(CompletionRequest, {"model": "m", "prompt": prompt})


@pytest.mark.parametrize("prompt", [None, 5, ["w1", "w2"], [[5]], ["w1", 5], [5.5], [True]])
def test_prompts_that_cannot_be(prompt):
    with pytest.raises(RequestError) as refused:
        checked(CompletionRequest, {"model": "m", "prompt": prompt})
    assert refused.value.param == "prompt"
    assert "at most 1 item" in refused.value.message or prompt != ["w1", "w2"]


@pytest.mark.parametrize("body", [{}, {"budget": 5}, {"budget": ""}, {"budget": "1GiB", "x": 1}])
def test_budgets_that_cannot_be(body):
    with pytest.raises(RequestError):
        checked(BudgetRequest, body)
