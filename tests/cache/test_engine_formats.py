"""Traces from where models run: vLLM's and SGLang's responses, llama.cpp's CSV, router logits."""

import base64
import io
import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from dwellmoe.cache.formats import read_trace, write_trace
from dwellmoe.cache.tensor_file import write_tensors
from dwellmoe.cache.trace import EMPTY, RoutingTrace
from dwellmoe.errors import UserError
from dwellmoe.routing.record import record_rows
from tests.cache.traces import random_trace
from tests.data.stand_ins import word_tokenizer
from tests.tiny_models import tiny_model

LAYERS, EXPERTS, K = 3, 12, 3


def chosen(tokens, seed=0):
    """Distinct ids [tokens, LAYERS, K]."""
    rng = np.random.default_rng(seed)
    return np.argsort(rng.random((tokens, LAYERS, EXPERTS)), axis=2)[:, :, :K]


def npy(array):
    buffer = io.BytesIO()
    np.save(buffer, array)
    return base64.b64encode(buffer.getvalue()).decode()


def flat(array):
    return base64.b64encode(np.ascontiguousarray(array, "<i4").tobytes()).decode()


def usage(prompt, completion):
    return {"prompt_tokens": prompt, "completion_tokens": completion}


def written(tmp_path, *responses, name="t.jsonl"):
    path = tmp_path / name
    path.write_text("\n".join(map(json.dumps, responses)) + "\n")
    return path


def read(path, **hints):
    return read_trace(path, num_experts=EXPERTS, **hints)


IDS = chosen(7)
SCHEMA = {"num_layers": LAYERS, "top_k": K, "dtype": "int32"}
RESPONSES = {
    "vLLM, an array of all tokens": {
        "model": "m",
        "choices": [{"routed_experts": npy(IDS.astype(np.uint8))}],
        "usage": usage(4, 4),
    },
    "vLLM, nested lists, the prompt apart": {
        "model": "m",
        "prompt_routed_experts": IDS[:4].tolist(),
        "choices": [{"routed_experts": IDS[4:].tolist()}],
    },
    "vLLM, data beside its shape": {
        "model": "m",
        "choices": [
            {
                "routed_experts": {
                    "data": base64.b64encode(IDS.astype(np.int16).tobytes()).decode(),
                    "shape": [7, LAYERS, K],
                    "dtype": "int16",
                }
            }
        ],
        "usage": usage(4, 4),
    },
    "SGLang, flat": {"model": "m", "meta_info": {"routed_experts": flat(IDS), **usage(4, 4)}},
    "SGLang, with a schema": {
        "model": "m",
        "meta_info": {"routed_experts": flat(IDS), "expert_ids_schema": SCHEMA, **usage(4, 4)},
    },
    "SGLang, input and output apart": {
        "model": "m",
        "sglext": {
            "input_expert_ids": flat(IDS[:3]),
            "output_expert_ids": flat(IDS[3:]),
            "expert_ids_schema": SCHEMA,
        },
        "usage": usage(4, 4),
    },
    "SGLang, in a choice": {
        "model": "m",
        "choices": [{"sglext": {"routed_experts": flat(IDS)}}],
        "usage": usage(4, 4),
    },
}


@pytest.mark.parametrize("name", RESPONSES)
def test_a_response_of_an_engine_is_read(name, tmp_path):
    trace = read(written(tmp_path, RESPONSES[name]), top_k=K)
    assert np.array_equal(trace.experts, IDS) and trace.model == "m"
    assert trace.phase.tolist() == [0] * 4 + [1] * 3, "the last of 4 generated tokens never ran"


@pytest.mark.parametrize("shape", ["lines", "list", "stream", "pretty"])
def test_several_responses_are_several_requests(shape, tmp_path):
    found = [
        {"choices": [{"routed_experts": npy(chosen(n, seed=n))}], "usage": usage(2, n - 1)} for n in (3, 6)
    ]
    text = {
        "lines": "\n".join(map(json.dumps, found)),
        "list": json.dumps(found),
        "stream": "".join(f"data: {json.dumps(one)}\n\n" for one in found) + "data: [DONE]\n",
        "pretty": json.dumps(found, indent=2),
    }[shape]
    path = tmp_path / "t"  # known by its content alone
    path.write_text(text)
    trace = read(path)
    assert trace.request.tolist() == [0] * 3 + [1] * 6
    assert np.array_equal(trace.experts, np.concatenate([chosen(3, seed=3), chosen(6, seed=6)]))
    assert trace.phase.tolist() == [0, 0, 1, 0, 0, 1, 1, 1, 1]


def test_every_choice_is_a_request_and_the_prompt_ran_once(tmp_path):
    response = {
        "prompt_routed_experts": IDS[:2].tolist(),
        "choices": [{"routed_experts": IDS[2:4].tolist()}, {"routed_experts": IDS[4:].tolist()}],
    }
    trace = read(written(tmp_path, response))
    assert trace.request.tolist() == [0] * 4 + [1] * 3 and trace.phase.tolist() == [0, 0] + [1] * 5


def test_dense_layers_and_tokens_that_never_ran_are_left_out(tmp_path, capsys):
    """SGLang has a row for every decoder layer, vLLM fills with zeros."""
    padded = np.zeros((8, LAYERS + 1, K), np.int32)
    padded[:7, 1:] = IDS
    trace = read(written(tmp_path, {"choices": [{"routed_experts": npy(padded)}], "usage": usage(4, 5)}))
    assert np.array_equal(trace.experts, IDS) and trace.layer_ids == (1, 2, 3)
    assert "1 of 4 layers" in capsys.readouterr().err
    np.save(tmp_path / "t.npy", padded)
    assert np.array_equal(read(tmp_path / "t.npy").experts, IDS), "the same array as a file"


def test_layers_that_a_schema_calls_dense_are_left_out_where_one_expert_is_chosen(tmp_path):
    ids = np.zeros((4, 2, 1), np.int32)
    ids[:, 1, 0] = [0, 0, 5, 0]
    schema = {"num_layers": 2, "top_k": 1, "moe_layer_ids": [1]}
    meta = {"routed_experts": flat(ids), "expert_ids_schema": schema, **usage(2, 3)}
    trace = read(written(tmp_path, {"meta_info": meta}))
    assert trace.layer_ids == (1,) and trace.experts.ravel().tolist() == [0, 0, 5, 0]


BAD = {
    "no experts": ({"choices": [{"text": "x"}]}, {}, "enable-return-routed-experts"),
    "no base64": ({"choices": [{"routed_experts": "%%%"}]}, {}, "cannot be read"),
    "no array": ({"choices": [{"routed_experts": npy(np.ones((1, 1, 1)))}]}, {}, "whole numbers"),
    "two dimensions": ({"choices": [{"routed_experts": [[1, 2]]}]}, {}, "top_k"),
    "ragged": ({"choices": [{"routed_experts": [[[1, 2]], [[1]]]}]}, {}, "cannot be read"),
    "no shape": ({"meta_info": {"routed_experts": flat(IDS), **usage(4, 4)}}, {}, "--top_k"),
    "other K": ({"meta_info": {"routed_experts": flat(IDS), **usage(4, 4)}}, {"top_k": 4}, "--top_k 4"),
    "id": ({"choices": [{"routed_experts": [[[1, 99]]]}]}, {}, "slot 1 is 99"),
    "no object": ([1], {}, "expected a response"),
    "pickle": (
        {"choices": [{"routed_experts": npy(np.array([{}], object))}]},
        {},
        "cannot be read",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_a_response_that_cannot_be_names_its_place(name, tmp_path):
    response, hints, said = BAD[name]
    with pytest.raises(UserError) as error:
        read(written(tmp_path, response), **hints)
    assert said in str(error.value) and "t.jsonl" in str(error.value) and "\n" not in str(error.value)


def test_a_broken_line_is_named(tmp_path):
    path = tmp_path / "t.jsonl"
    path.write_text(json.dumps(RESPONSES["vLLM, an array of all tokens"]) + '\n{"choices": [\n')
    with pytest.raises(UserError, match="line 2: not JSON"):
        read(path)


def test_responses_of_two_models_are_refused(tmp_path):
    other = {"choices": [{"routed_experts": npy(IDS[:, :2])}], "usage": usage(4, 4)}
    with pytest.raises(UserError, match="line 2"):
        read(written(tmp_path, RESPONSES["vLLM, an array of all tokens"], other))


@settings(max_examples=20)
@given(seed=st.integers(0, 1000))
def test_json_and_back(seed, tmp_path_factory):
    trace = random_trace(seed, steps=20)
    path = tmp_path_factory.mktemp("json") / "t.jsonl"
    write_trace(trace, path)
    back = read(path)
    assert np.array_equal(back.experts, trace.experts) and np.array_equal(back.phase, trace.phase)
    numbers = np.unique(trace.request, return_inverse=True)[1]
    assert np.array_equal(back.request, numbers)


def moe_trace(*passes):
    """The CSV of llama.cpp: of each pass (ids, tokens of the last layer)."""
    lines = []
    for ids, last in passes:
        for layer in range(LAYERS):
            rows = ids[-last:, layer] if layer == LAYERS - 1 else ids[:, layer]
            lines += [f"{layer},{expert}\n" for expert in rows.ravel().tolist()]
    return "".join(lines)


@pytest.mark.parametrize("header", ["", "layer,expert\n"])
def test_llama_cpp_csv(header, tmp_path, capsys):
    ids = chosen(9, seed=4)
    text = header + moe_trace((ids[:5], 1), *[(ids[i : i + 1], 1) for i in range(5, 9)])
    path = tmp_path / "moe_trace.csv"
    path.write_text(text)
    trace = read(path)
    assert np.array_equal(trace.experts[4:], ids[4:]) and np.array_equal(trace.experts[:, :2], ids[:, :2])
    assert (trace.experts[:4, 2] == EMPTY).all(), "of a prompt's last layer llama.cpp computes one token"
    assert trace.phase.tolist() == [0] * 5 + [1] * 4
    said = capsys.readouterr().err
    assert "K is taken as 3" in said and "only decode is sure" in said


def test_a_prompt_after_decoding_is_another_request(tmp_path):
    ids = chosen(4)
    once = moe_trace((ids[:3], 1), (ids[3:], 1))
    (tmp_path / "t.csv").write_text(once + once)
    trace = read(tmp_path / "t.csv", top_k=K)
    assert trace.request.tolist() == [0] * 4 + [1] * 4


def test_a_pass_that_was_cut_off_is_left_out(tmp_path, capsys):
    ids = chosen(4)
    whole = moe_trace(*[(ids[i : i + 1], 1) for i in range(3)])
    for cut in (1, K, 2 * K + 1):
        rest = moe_trace((ids[3:], 1)).splitlines(keepends=True)[:cut]
        (tmp_path / "t.csv").write_text(whole + "".join(rest))
        assert np.array_equal(read(tmp_path / "t.csv", top_k=K).experts, ids[:3])
    assert "ends early" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "hints", "said"),
    [
        ("0,1\n0,2\n1,x\n", {}, "line 3"),
        ("0,1\n0,2\n1,3,4\n", {}, "line 3"),
        ("0,1\n0,2\n1,99\n1,2\n", {}, "line 3: expert is 99"),
        ("0,1\n0,2\n1,3\n1,4\n1,1\n0,1\n0,2\n1,3\n1,4\n", {"top_k": 2}, "line 3: 3 lines of layer 1"),
        ("0,1\n1,2\n1,3\n0,1\n1,3\n1,2\n", {"top_k": 1}, "line 2: 2 lines of layer 1"),
        ("0,1\n1,2\n2,2\n0,1\n2,3\n0,1\n1,2\n2,1\n", {"top_k": 1}, "line 4: a pass has the layers 0, 2"),
    ],
)
def test_a_faulty_moe_trace_names_its_line(tmp_path, text, hints, said):
    (tmp_path / "t.csv").write_text(text)
    with pytest.raises(UserError, match=said):
        read(tmp_path / "t.csv", **hints)


def test_llama_cpp_csv_and_back(tmp_path):
    trace = random_trace(5, steps=20, requests=2)
    path = tmp_path / "t.moe_trace.csv"
    write_trace(trace, path)
    back = read(path, top_k=3)
    assert np.array_equal(back.experts, trace.experts) and np.array_equal(back.phase, trace.phase)
    empty = RoutingTrace(np.array([[[3, EMPTY]]], np.uint16), np.ones(1, np.uint8), np.zeros(1, np.int32), 4)
    with pytest.raises(UserError, match="empty slots"):
        write_trace(empty, path)


def save_logits(path, logits, kind):
    """Router logits [L, tokens, E] as a user saves the tuple that transformers returns."""
    if kind == "npy":
        np.save(path, logits)
    elif kind == "safetensors":
        write_tensors(path, {f"router_logits.{i}": layer for i, layer in enumerate(logits)}, {"format": "pt"})
    else:
        layers = torch.from_numpy(logits).to(torch.bfloat16)
        save_file({f"router_logits.{i}": layer.contiguous() for i, layer in enumerate(layers)}, path)


@pytest.mark.parametrize("kind", ["npy", "safetensors", "bfloat16"])
def test_router_logits(kind, tmp_path, capsys):
    logits = np.random.default_rng(0).normal(size=(LAYERS, 6, EXPERTS)).astype(np.float32)
    if kind == "bfloat16":
        logits = torch.from_numpy(logits).to(torch.bfloat16).float().numpy()
    path = tmp_path / ("t.npy" if kind == "npy" else "t.safetensors")
    save_logits(path, logits, kind)
    trace = RoutingTrace.load(path, top_k=K, prompt_tokens=2)
    assert np.array_equal(trace.experts, np.argsort(-logits, axis=2, kind="stable")[:, :, :K].swapaxes(0, 1))
    shares = np.exp(logits) / np.exp(logits).sum(axis=2, keepdims=True)
    assert trace.weights is not None and trace.gate_probs is not None
    assert np.allclose(trace.gate_probs, shares.swapaxes(0, 1), atol=1e-3)
    assert np.allclose(trace.weights, np.sort(trace.gate_probs, axis=2)[:, :, ::-1][:, :, :K], atol=1e-3)
    assert trace.phase.tolist() == [0, 0, 1, 1, 1, 1] and "largest router logits" in capsys.readouterr().err


def test_router_logits_of_a_batch_are_requests(tmp_path):
    logits = np.random.default_rng(0).normal(size=(2, 3, 4, EXPERTS))
    np.save(tmp_path / "t.npy", logits)
    trace = RoutingTrace.load(tmp_path / "t.npy", top_k=2, prompt_tokens=1)
    assert trace.request.tolist() == [0] * 4 + [1] * 4 + [2] * 4 and trace.phase.tolist() == [0, 1, 1, 1] * 3


def test_transformers_own_router_logits_are_the_choice_of_its_routers(tmp_path):
    model = tiny_model("olmoe")
    ids = list(range(4, 24))
    with torch.no_grad():
        found = model(input_ids=torch.tensor([ids]), output_router_logits=True).router_logits
    save_file({f"router_logits.{i}": layer for i, layer in enumerate(found)}, tmp_path / "t.safetensors")
    trace = RoutingTrace.load(tmp_path / "t.safetensors", top_k=2)
    ours = record_rows(model, word_tokenizer(), [ids])
    assert np.array_equal(trace.experts, ours.experts)


@pytest.mark.parametrize(
    ("tensors", "hints", "said"),
    [
        ({"router_logits.0": np.zeros((2, 4), np.float32)}, {}, "--top_k"),
        ({"router_logits.0": np.zeros((2, 4), np.float32)}, {"top_k": 5}, "top_k must be"),
        (
            {"router_logits.0": np.zeros((2, 4), np.float32)},
            {"top_k": 2, "num_experts": 8},
            "num_experts is 8",
        ),
        (
            {"router_logits.0": np.zeros((2, 4), np.float32)},
            {"top_k": 2, "prompt_tokens": 3},
            "prompt_tokens",
        ),
        ({"router_logits.0": np.full((2, 4), np.nan, np.float32)}, {"top_k": 2}, "layer 0, row 0"),
        ({"router_logits.0": np.zeros((2, 4), np.int32)}, {"top_k": 2}, "router_logits.0"),
        ({"router_logits": np.zeros((2, 4), np.float32)}, {"top_k": 2}, "tensor 'router_logits'"),
        (
            {
                "router_logits.0": np.zeros((2, 4), np.float32),
                "router_logits.1": np.zeros((3, 4), np.float32),
            },
            {"top_k": 2},
            "must be alike",
        ),
        (
            {
                "router_logits.0": np.zeros((2, 4), np.float32),
                "a.router_logits.0": np.zeros((2, 4), np.float32),
            },
            {"top_k": 2},
            "twice",
        ),
    ],
)
def test_router_logits_that_cannot_be(tensors, hints, said, tmp_path):
    write_tensors(tmp_path / "t.safetensors", tensors, {})
    with pytest.raises(UserError) as error:
        RoutingTrace.load(tmp_path / "t.safetensors", **hints)
    assert said in str(error.value)


def test_a_checkpoint_is_no_trace(tmp_path):
    write_tensors(tmp_path / "t.safetensors", {"model.weight": np.zeros((2, 4), np.float32)}, {})
    with pytest.raises(UserError, match="not a routing trace"):
        RoutingTrace.load(tmp_path / "t.safetensors", top_k=None)
