"""Traces go through every format and back, and broken files are refused with the place of the fault."""

import numpy as np
import pytest

from dwellmoe.cache.formats import read_trace, write_trace
from dwellmoe.cache.formats.route_csv import COLUMNS
from dwellmoe.cache.trace import RoutingTrace
from dwellmoe.errors import UserError
from tests.cache.traces import random_trace


def one_request(seed=0, **fields):
    base = random_trace(seed, requests=1)
    return RoutingTrace(base.experts, base.phase, base.request, 12, **fields)


def full():
    base = random_trace(3)
    weights = np.random.default_rng(0).random(base.experts.shape).astype(np.float16)
    return RoutingTrace(
        base.experts, base.phase, base.request, 12, expert_bytes=(5, 6, 7), weights=weights, model="m/x"
    )


def test_route_csv_and_back(tmp_path):
    trace = full()
    write_trace(trace, tmp_path / "t.route.csv")
    back = read_trace(tmp_path / "t.route.csv")
    for name in ("experts", "phase", "request"):
        assert np.array_equal(getattr(back, name), getattr(trace, name)), name
    assert np.allclose(np.asarray(back.weights), np.asarray(trace.weights), atol=1e-3)
    assert (back.expert_bytes, back.num_experts, back.model) == (trace.expert_bytes, 12, "m/x")


@pytest.mark.parametrize("ending", [".oracleGeneral", ".csv"])
def test_libcachesim_and_back(tmp_path, ending):
    trace = full()
    write_trace(trace, tmp_path / f"t{ending}")
    back = read_trace(tmp_path / f"t{ending}", num_experts=12)
    assert np.array_equal(back.experts, trace.experts)
    assert back.expert_bytes == trace.expert_bytes and (back.phase == 1).all()


def test_engine_array_and_back(tmp_path):
    trace = one_request()
    write_trace(trace, tmp_path / "t.npy")
    assert np.load(tmp_path / "t.npy").dtype == np.int16
    prompt = int((trace.phase == 0).sum())
    back = read_trace(tmp_path / "t.npy", num_experts=12, prompt_tokens=prompt)
    assert np.array_equal(back.experts, trace.experts) and np.array_equal(back.phase, trace.phase)


def test_empty_slots_survive(tmp_path):
    experts = np.array([[[3, 65535]], [[0, 1]]], np.uint16)
    trace = RoutingTrace(experts, np.ones(2, np.uint8), np.zeros(2, np.int32), 4)
    for name, hints in (("t.npy", {"num_experts": 4}), ("t.route.csv", {}), ("t.csv", {"num_experts": 4})):
        write_trace(trace, tmp_path / name)
        assert np.array_equal(read_trace(tmp_path / name, **hints).experts, experts), name


def test_next_access_is_the_next_use(tmp_path):
    trace = one_request(1)
    write_trace(trace, tmp_path / "t.csv")
    rows = np.loadtxt(tmp_path / "t.csv", delimiter=",", skiprows=1, dtype=np.int64)
    for at, (_, name, _, following) in enumerate(rows.tolist()):
        later = np.flatnonzero(rows[at + 1 :, 1] == name)
        assert following == (at + 1 + later[0] if len(later) else -1)


BROKEN_ROWS = {
    "0,1,0,0,0,1": "broken row",
    "0,1,0,0,0,one,0.5,0,5": "broken row",
    "": "broken row",
    "0,2,0,0,0,1,0.5,0,5": "out of range",
    "0,1,0,9,0,1,0.5,0,5": "out of range",
    "0,1,0,0,0,12,0.5,0,5": "out of range",
    "0,1,0,0,0,-1,0.5,0,5": "out of range",
    "0,1,0,0,0,1.5,0.5,0,5": "out of range",
    "0,1,0,0,0,1,nan,0,5": "out of range",
    "0,1,0,0,0,inf,0.5,0,5": "out of range",
}


@pytest.mark.parametrize("row", BROKEN_ROWS)
def test_broken_csv_row_is_named_by_its_line(tmp_path, row):
    path = tmp_path / "t.route.csv"
    write_trace(full(), path)
    lines = path.read_text().splitlines()
    path.write_text("\n".join([*lines[:50], row, *lines[50:]]) + "\n")
    with pytest.raises(UserError, match=f"line 51: .*{BROKEN_ROWS[row]}"):
        read_trace(path)


def test_repeated_csv_row_is_refused(tmp_path):
    path = tmp_path / "t.route.csv"
    write_trace(full(), path)
    lines = path.read_text().splitlines()
    path.write_text("\n".join([*lines, lines[20]]))
    with pytest.raises(UserError, match=f"line {len(lines) + 1}: .*twice"):
        read_trace(path)


NINE_LAYERS = f"# route_trace v1\n# n_layer=9 n_expert=4\n{COLUMNS}\n0,1,0,0,0,1,0.5,0,5\n"


@pytest.mark.parametrize(
    ("name", "content", "hints", "message"),
    [
        ("t.route.csv", "# route_trace v1\n", {}, "truncated"),
        ("t.route.csv", "# route_trace v1\nturn,phase\n", {}, "line 2: expected the columns"),
        (
            "t.route.csv",
            "# route_trace v1\n# n_layer=x n_expert=4\n",
            {},
            "line 2: n_layer: expected a whole number",
        ),
        (
            "t.route.csv",
            "# route_trace v1\n# n_layer=9 n_expert=4\n" + COLUMNS + "\n0,1,0,0,0,1,0.5,0,5\n",
            {},
            "n_layer=9",
        ),
        ("t.bin", "anything", {}, "not a trace in any known format"),
        ("t.csv", "time,object,size,next_access_vtime\n1,2,3,4\n5,six,7,8\n", {"num_experts": 4}, "line 3"),
        ("t.csv", "time,object,size,next_access_vtime\n", {"num_experts": 4}, "empty"),
        ("t.csv", "time,object,size,next_access_vtime\n1,2,3,4\n", {}, "num_experts"),
        ("t.oracleGeneral", "short", {"num_experts": 4}, "truncated"),
        ("t.npy", "\x93NUMPY", {"num_experts": 4}, "not a whole .npy"),
        ("t.safetensors", "", {}, "truncated"),
        ("t.route.csv", "", {"num_experts": 4}, "has no effect"),
    ],
)
def test_foreign_content_is_refused(tmp_path, name, content, hints, message):
    path = tmp_path / name
    path.write_bytes(content.encode("latin-1"))
    with pytest.raises(UserError) as error:
        read_trace(path, **hints)
    assert message in str(error.value) and str(path) in str(error.value)


@pytest.mark.parametrize(
    ("array", "hints", "message"),
    [
        (np.zeros((2, 1, 2), np.float32), {"num_experts": 4}, "expected whole numbers"),
        (np.zeros((2, 2), np.int16), {"num_experts": 4}, "expected whole numbers"),
        (np.array([[[0, -2]]], np.int16), {"num_experts": 4}, "ids must be -1"),
        (np.array([[[0, 4]]], np.int16), {"num_experts": 4}, "row 0, layer 0, slot 1 is 4"),
        (np.array([[[0, 1]]], np.int16), {"num_experts": 4, "prompt_tokens": 2}, "prompt_tokens must be"),
        (np.array([[[0, 1]]], np.int16), {}, "num_experts"),
        (np.array([{}], object), {"num_experts": 4}, "pickled"),
    ],
)
def test_wrong_arrays_are_refused(tmp_path, array, hints, message):
    np.save(tmp_path / "t.npy", array, allow_pickle=True)
    with pytest.raises(UserError) as error:
        read_trace(tmp_path / "t.npy", **hints)
    assert message in str(error.value)


def test_nothing_is_left_of_a_failed_write(tmp_path):
    with pytest.raises(UserError, match="cannot be written"):
        write_trace(full(), tmp_path / "none" / "t.npy")
    big = RoutingTrace(np.zeros((1, 1, 1), np.uint16), np.ones(1, np.uint8), np.zeros(1, np.int32), 40000)
    with pytest.raises(UserError, match="do not fit into int16"):
        write_trace(big, tmp_path / "t.npy")
    assert list(tmp_path.iterdir()) == []


def test_an_array_of_empty_slots_is_an_empty_trace(tmp_path):
    np.save(tmp_path / "t.npy", np.full((4, 2, 2), -1, np.int16))
    with pytest.raises(UserError, match="only empty slots"):
        read_trace(tmp_path / "t.npy", num_experts=4)
