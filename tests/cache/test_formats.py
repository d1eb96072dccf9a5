"""Traces go through every format and back, and broken files are refused with the place of the fault."""

import tracemalloc

import numpy as np
import pytest

from dwellmoe.cache import memory
from dwellmoe.cache.formats import read_trace, write_trace
from dwellmoe.cache.formats.route_csv import COLUMNS
from dwellmoe.cache.trace import EMPTY, RoutingTrace
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


@pytest.mark.parametrize("name", ["t.route.csv", "t.csv"])
@pytest.mark.parametrize(
    "change",
    [
        lambda text: "\ufeff" + text,
        lambda text: text + "\n \n",
        lambda text: text.replace("\n", "\r\n"),
        lambda text: text.rstrip("\n"),
    ],
    ids=["byte-order mark", "blank lines at the end", "CRLF", "no last line break"],
)
def test_text_as_other_tools_write_it(name, change, tmp_path):
    trace, path = full(), tmp_path / name
    write_trace(trace, path)
    path.write_bytes(change(path.read_text()).encode())
    hints = {"num_experts": 12} if name == "t.csv" else {}
    assert np.array_equal(read_trace(path, **hints).experts, trace.experts)


HEADERS = {
    "time,object,size,next_access_vtime": (0, 1, 2, 3),
    "time,size,object,next_access_vtime": (0, 2, 1, 3),
    "# Time, Obj-ID, Obj Size": (0, 1, 2),
    "next_access_vtime,obj_id,tenant,timestamp": (3, 1, 2, 0),
    '"id","time"': (1, 0),
    "": (0, 1, 2, 3),
}


@pytest.mark.parametrize("header", HEADERS)
def test_columns_of_a_csv_are_found_by_their_names(header, tmp_path, capsys):
    trace, path = full(), tmp_path / "t.csv"
    write_trace(trace, path)
    rows = [line.split(",") for line in path.read_text().splitlines()[1:]]
    lines = [",".join(row[column] for column in HEADERS[header]) for row in rows]
    path.write_text("\n".join([header, *lines] if header else lines))
    back = read_trace(path, num_experts=12)
    assert np.array_equal(back.experts, trace.experts)
    has_sizes = "size" in header.lower() or not header
    assert back.expert_bytes == (trace.expert_bytes if has_sizes else (0, 0, 0))
    said = capsys.readouterr().err
    assert ("no header" in said) == (not header) and ("tenant" in said) == ("tenant" in header)


def test_objects_of_several_sizes_have_no_bytes(tmp_path, capsys):
    (tmp_path / "t.csv").write_text("time,object,size\n0,0,10\n0,4,30\n1,1,20\n1,4,30\n")
    assert read_trace(tmp_path / "t.csv", num_experts=4).expert_bytes == (0, 0)
    assert "several sizes" in capsys.readouterr().err


def test_layers_that_no_time_reaches_together_are_said(tmp_path, capsys):
    (tmp_path / "t.csv").write_text("time,object\n0,0\n1,4\n2,8\n")
    assert read_trace(tmp_path / "t.csv", num_experts=4).layers == 3
    assert "no time has accesses to all 3 layers" in capsys.readouterr().err


def test_a_csv_under_another_ending_is_read_as_one(tmp_path):
    trace = full()
    write_trace(trace, tmp_path / "t.csv")
    (tmp_path / "t.csv").rename(tmp_path / "t.oracleGeneral")
    assert np.array_equal(read_trace(tmp_path / "t.oracleGeneral", num_experts=12).experts, trace.experts)


@pytest.mark.parametrize("dtype", ["u1", "i1", "i2", ">i2", "u2", "i4", "u4", "i8", "u8"])
@pytest.mark.parametrize("order", ["C", "F"])
def test_arrays_of_every_kind_of_whole_number(dtype, order, tmp_path):
    trace = one_request()
    np.save(tmp_path / "t.npy", trace.experts.astype(dtype, order=order))
    assert np.array_equal(read_trace(tmp_path / "t.npy", num_experts=12).experts, trace.experts)


@pytest.mark.parametrize(("dtype", "empty"), [("i2", -1), ("i8", -1), ("u2", 65535)])
def test_rows_and_layers_without_experts_are_left_out(dtype, empty, tmp_path, capsys):
    trace, path = one_request(), tmp_path / "t.npy"
    padded = np.full((trace.steps + 3, trace.layers + 1, trace.top_k), empty, dtype)
    padded[3:, 1:] = trace.experts
    np.save(path, padded)
    back = read_trace(path, num_experts=12, prompt_tokens=5)
    assert np.array_equal(back.experts, trace.experts)
    assert back.layer_ids == (1, 2, 3) and (back.phase == 0).sum() == 2
    said = capsys.readouterr().err
    assert "3 of 63 rows" in said and "1 of 4 layers" in said


def test_a_trace_larger_than_half_of_free_memory_is_refused_before_it_is_made(tmp_path, monkeypatch):
    write_trace(full(), tmp_path / "t.route.csv")
    write_trace(full(), tmp_path / "t.oracleGeneral")
    write_trace(one_request(), tmp_path / "t.npy")
    monkeypatch.setattr(memory, "_free_bytes", lambda: 1000)
    for name, hints in (
        ("t.route.csv", {}),
        ("t.oracleGeneral", {"num_experts": 12}),
        ("t.npy", {"num_experts": 12}),
    ):
        with pytest.raises(UserError, match=rf"{name}: .* of memory: at most"):
            read_trace(tmp_path / name, **hints)


def test_a_small_file_takes_little_memory(tmp_path):
    """A row in a far corner of its table: 43 GiB, were it made."""
    rows = "".join(f"0,1,{step},0,0,0,0.5,0,5\n" for step in range(100)) + "0,1,100,59999,3,0,0.5,0,5\n"
    path = tmp_path / "t.route.csv"
    path.write_text(f"# route_trace v1\n# n_layer=60000 n_expert=65000\n{COLUMNS}\n{rows}")
    tracemalloc.start()
    with pytest.raises(UserError, match="101 rows cannot be 101 token steps x 60000 layers"):
        read_trace(path)
    assert tracemalloc.get_traced_memory()[1] < 1 << 20
    tracemalloc.stop()


def test_a_trace_of_any_format_is_loaded_by_its_content(tmp_path):
    trace = one_request()
    for name, hints in (
        ("t.route.csv", {}),
        ("t.oracleGeneral", {"num_experts": 12}),
        ("t.npy", {"num_experts": 12}),
        ("t.safetensors", {}),
    ):
        write_trace(trace, tmp_path / name)
        assert np.array_equal(RoutingTrace.load(tmp_path / name, **hints).experts, trace.experts), name
    (tmp_path / "t.safetensors").rename(tmp_path / "t")
    assert np.array_equal(RoutingTrace.load(tmp_path / "t").experts, trace.experts)


def test_a_row_without_an_expert_is_no_token_step_of_our_own_format(tmp_path, capsys):
    trace = one_request()
    experts = np.concatenate([trace.experts[:2], np.full_like(trace.experts[:3], EMPTY), trace.experts[2:4]])
    padded = RoutingTrace(experts, np.ones(7, np.uint8), np.zeros(7, np.int32), trace.num_experts)
    padded.save(tmp_path / "t.safetensors")
    assert np.array_equal(RoutingTrace.load(tmp_path / "t.safetensors").experts, trace.experts[:4])
    assert "3 of 7 rows" in capsys.readouterr().err


def test_a_csv_of_tokens_layers_and_experts_is_read(tmp_path):
    (tmp_path / "t.csv").write_text("expert,token,layer\n3,7,0\n1,7,0\n2,7,1\n0,8,0\n2,8,1\n")
    trace = read_trace(tmp_path / "t.csv", num_experts=4)
    assert trace.experts.tolist() == [[[3, 1], [2, EMPTY]], [[0, EMPTY], [2, EMPTY]]]


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("token,layer,expert\n0,0,4\n", "line 2: expert is 4"),
        ("token,layer,expert\n0,-1,2\n", "line 2: layer is -1"),
        ("token,layer,expert\n0,0,2\n1,0,2\n0,1,2\n", "line 4: token 0"),
        ("token,layer\n0,0\n", "line 1: needs one column 'expert'"),
        ("time,object\n0,1\n0,\x002\n", "line 3"),
    ],
)
def test_a_faulty_csv_names_its_line(tmp_path, text, named):
    (tmp_path / "t.csv").write_text(text)
    with pytest.raises(UserError, match=named):
        read_trace(tmp_path / "t.csv", num_experts=4)


@pytest.mark.parametrize(
    ("line", "folder", "names"),
    [
        ("0::/box/a", "box/a", ("memory.max", "memory.current", "file")),
        ("0::/box/a", "box", ("memory.max", "memory.current", "file")),
        ("0::/elsewhere", "", ("memory.max", "memory.current", "file")),
        (
            "4:cpu,memory:/box",
            "memory/box",
            ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_cache"),
        ),
    ],
)
def test_the_limit_of_a_container_counts(tmp_path, monkeypatch, line, folder, names):
    (tmp_path / folder).mkdir(parents=True, exist_ok=True)
    for name, value in zip(names, ("5000", "4000", None), strict=True):
        (tmp_path / folder / (name if value else "memory.stat")).write_text(value or f"{name} 1500\n")
    (tmp_path / "list").write_text(line + "\n")
    monkeypatch.setattr(memory, "CGROUPS", tmp_path)
    monkeypatch.setattr(memory, "CGROUP_LIST", tmp_path / "list")
    monkeypatch.setattr(memory, "_machine_free_bytes", lambda: 9000)
    assert memory._free_bytes() == 5000 - 4000 + 1500
    (tmp_path / folder / names[0]).write_text("max\n")
    assert memory._free_bytes() == 9000
