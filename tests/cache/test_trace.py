"""A trace reads back exactly as written, and what is not one is refused with a reason."""

import json
import os

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from dwellmoe.cache.tensor_file import map_tensors, write_tensors
from dwellmoe.cache.trace import RoutingTrace
from dwellmoe.errors import UserError
from dwellmoe.files import replacing
from tests.cache.traces import random_trace


def fields(**changes):
    base = {
        "experts": np.array([[[0, 1]], [[2, 1]]], np.uint16),
        "phase": np.array([0, 1], np.uint8),
        "request": np.array([0, 0], np.int32),
        "num_experts": 4,
    }
    return base | changes


def full_trace():
    rng = np.random.default_rng(1)
    base = random_trace(steps=20)
    return RoutingTrace(
        base.experts,
        base.phase,
        base.request,
        base.num_experts,
        layer_ids=(1, 2, 5),
        expert_bytes=(100, 200, 300),
        model="some/model",
        source="a test",
        weights=rng.random(base.experts.shape).astype(np.float16),
        token_ids=rng.integers(0, 99, 20).astype(np.int32),
        gate_probs=rng.random((20, 3, base.num_experts)).astype(np.float16),
        chunk=np.zeros(20, np.int32),
        batch_step=np.arange(20, dtype=np.int32),
        categories={0: "one", 1: "two", 2: "one"},
        chat_template=False,
    )


def test_reads_back_as_written(tmp_path):
    trace = full_trace()
    trace.save(tmp_path / "t.safetensors")
    back = RoutingTrace.load(tmp_path / "t.safetensors")
    for name, value in vars(trace).items():
        assert np.array_equal(getattr(back, name), value), name
    assert [path.name for path in tmp_path.iterdir()] == ["t.safetensors"]


def test_file_is_ordinary_safetensors(tmp_path):
    trace = full_trace()
    trace.save(tmp_path / "t.safetensors")
    assert np.array_equal(load_file(tmp_path / "t.safetensors")["experts"], trace.experts)


def test_arrays_are_immutable():
    trace = full_trace()
    with pytest.raises(ValueError):
        trace.experts[0, 0, 0] = 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"experts": np.zeros((2, 1, 2), np.int64)}, "experts must be uint16"),
        ({"experts": np.zeros((2, 2), np.uint16)}, "experts must be uint16"),
        ({"experts": np.zeros((0, 1, 2), np.uint16)}, "empty"),
        ({"experts": np.array([[[0, 4]], [[2, 1]]], np.uint16)}, "step 0, layer 0"),
        ({"experts": np.array([[[0, 1]], [[2, 2]]], np.uint16)}, "step 1, layer 0"),
        ({"phase": np.array([0, 2], np.uint8)}, "phase at step 1"),
        ({"phase": np.array([0], np.uint8)}, "phase must be uint8 [2]"),
        ({"request": np.array([0, 1], np.int64)}, "request must be int32"),
        ({"num_experts": 1}, "num_experts"),
        ({"layer_ids": (0, 1)}, "layer_ids must hold 1"),
        ({"expert_bytes": (-1,)}, "expert_bytes must hold 1"),
        ({"weights": np.full((2, 1, 2), np.nan, np.float16)}, "weights at step 0 is NaN"),
        ({"gate_probs": np.zeros((2, 1, 3), np.float16)}, "gate_probs must be float16 [2, 1, 4]"),
    ],
)
def test_wrong_content_is_refused(changes, message):
    with pytest.raises(UserError) as error:
        RoutingTrace(**fields(**changes))
    assert message in str(error.value)


def test_every_truncation_is_refused(tmp_path):
    path = tmp_path / "t.safetensors"
    RoutingTrace(**fields()).save(path)
    whole = path.read_bytes()
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        with pytest.raises(UserError):
            RoutingTrace.load(path)


@pytest.mark.parametrize("content", [b"", b"x" * 100, b"\x02" + bytes(7) + b"[]", b"\xff" * 8])
def test_foreign_file_is_refused(tmp_path, content):
    (tmp_path / "f").write_bytes(content)
    with pytest.raises(UserError, match="f: "):
        RoutingTrace.load(tmp_path / "f")


@pytest.mark.parametrize(
    ("tensors", "metadata"),
    [
        ({"other": np.zeros(2)}, {}),
        ({"experts": np.zeros((2, 1, 2), np.uint16)}, {"format": "moe-routing-trace", "version": "1"}),
        (None, {}),
        (None, {"format": "moe-routing-trace", "version": "2", "num_experts": "4"}),
        (None, {"format": "moe-routing-trace", "version": "1", "num_experts": "four"}),
        (
            None,
            {"format": "moe-routing-trace", "version": "1", "num_experts": "4", "layer_ids": json.dumps([0])},
        ),
    ],
)
def test_other_safetensors_are_refused(tmp_path, tensors, metadata):
    found = (
        {name: value for name, value in fields().items() if name != "num_experts"}
        if tensors is None
        else tensors
    )
    save_file(found, tmp_path / "f", metadata)
    with pytest.raises(UserError, match="f: "):
        RoutingTrace.load(tmp_path / "f")


@pytest.mark.parametrize(
    "broken",
    [
        {"categories": "[1]"},
        {"categories": '{"a": 1}'},
        {"categories": '{"a": ["0"]}'},
        {"categories": "{"},
        {"chat_template": "yes"},
        {"chat_template": ""},
    ],
)
def test_broken_facts_of_the_texts_are_refused(tmp_path, broken):
    full_trace().save(tmp_path / "t")
    tensors, metadata = map_tensors(tmp_path / "t")
    write_tensors(tmp_path / "f", tensors, metadata | broken)
    with pytest.raises(UserError, match=f"f: .*{next(iter(broken))}"):
        RoutingTrace.load(tmp_path / "f")


def test_missing_file_is_refused(tmp_path):
    with pytest.raises(UserError, match="No such file"):
        RoutingTrace.load(tmp_path / "none")


def test_a_pipe_is_written_to_and_not_replaced(tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    with replacing(pipe) as file:
        file.write(b"whole")
    assert os.read(reader, 10) == b"whole" and pipe.is_fifo() and list(tmp_path.iterdir()) == [pipe]
    with pytest.raises(BrokenPipeError), replacing(pipe):
        raise BrokenPipeError(32, "Broken pipe")
    os.close(reader)
