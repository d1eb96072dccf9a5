"""Every subcommand of `dwellmoe simulate` refuses a faulty file in one line that names it."""

import json
import os

import numpy as np
import pytest

from dwellmoe.cache.formats.libcachesim import RECORD
from dwellmoe.cache.learned.weights import save_weights
from dwellmoe.cache.tensor_file import write_tensors
from dwellmoe.cli import simulate
from dwellmoe.errors import UserError
from tests.cache.traces import random_trace

pytestmark = pytest.mark.slow

EXPERTS = ("--num_experts", "12")
DEVICE = ("--device", "configs/devices/laptop_8gb.toml")
MODEL = "models/tiny-olmoe"
COMMANDS = {
    "replay": ("--policy", "lru", "--capacity", "6"),
    "curve": ("--policies", "lru"),
    "describe": (),
    "plan": DEVICE,
    "stall": DEVICE,
    "forecast": (),
    "fit": ("--policy", "ml_habits", "--out", "OUT/w.safetensors"),
    "predict": ("--predictor", "gate_ahead", "--model_name", MODEL, "--learn", "TRACE", "--out", "OUT/p"),
    "convert": ("--out", "OUT/t.npy"),
    "calibrate": ("--out", "OUT/mu.json"),
}
METADATA = {
    "format": "moe-routing-trace",
    "version": "1",
    "num_experts": "4",
    "layer_ids": "[0]",
    "expert_bytes": "[100]",
}
TENSORS = {
    "experts": np.array([[[0, 1]], [[2, 1]]], np.uint16),
    "phase": np.ones(2, np.uint8),
    "request": np.zeros(2, np.int32),
}


def header(**changes):
    """A file of three tensors whose header differs in some entries."""
    entries = {
        "__metadata__": METADATA,
        "request": {"dtype": "I32", "shape": [2], "data_offsets": [0, 8]},
        "experts": {"dtype": "U16", "shape": [2, 1, 2], "data_offsets": [8, 16]},
        "phase": {"dtype": "U8", "shape": [2], "data_offsets": [16, 18]},
    }
    entries |= {
        name: entries.get(name, {}) | change if isinstance(change, dict) else change
        for name, change in changes.items()
    }
    text = json.dumps(entries).encode()
    return len(text).to_bytes(8, "little") + text + bytes([0] * 8 + [0, 0, 1, 0, 2, 0, 1, 0] + [1, 1])


def metadata(**changes):
    return header(__metadata__=METADATA | changes)


SAFETENSORS = {
    "metadata of numbers": metadata(num_experts=4),
    "metadata as a list": header(__metadata__=["format"]),
    "half a surrogate pair": metadata(model="\ud800"),
    "float experts": metadata(num_experts="4.0"),
    "experts of 5,000 digits": metadata(num_experts="9" * 5000),
    "more experts than ids": metadata(num_experts="70000"),
    "infinite bytes": metadata(expert_bytes="[1e400]"),
    "fractional bytes": metadata(expert_bytes="[1.5]"),
    "bytes beyond 64 bits": metadata(expert_bytes="[9223372036854775808]"),
    "negative bytes": metadata(expert_bytes="[-1]"),
    "bytes that are not JSON": metadata(expert_bytes="[1,"),
    "bytes in 100,000 brackets": metadata(expert_bytes="[" * 100_000),
    "float shape": header(experts={"shape": [2.0, 1, 2]}),
    "negative shape": header(experts={"shape": [-2, -1, 2]}),
    "shape beyond 64 bits": header(experts={"shape": [1 << 33, 1 << 33, 1 << 33]}),
    "true as an offset": header(experts={"data_offsets": [8, True]}),
    "offset of text": header(experts={"data_offsets": "89"}),
    "other dtype": header(experts={"dtype": "I16"}),
    "unknown dtype": header(experts={"dtype": "BF16"}),
    "entry that is no object": header(experts="x"),
    "overlapping tensors": header(experts={"data_offsets": [0, 8]}),
    "bytes behind the tensors": header() + b"\0",
    "shapes that disagree": header(phase={"shape": [1], "data_offsets": [16, 17]})[:-1],
    "a tensor more": header(more={"dtype": "U8", "shape": [0], "data_offsets": [18, 18]}),
    "a tensor less": header(request=None),
    "header of 100,000 brackets": (100_000).to_bytes(8, "little") + b"{" + b"[" * 99_999,
    "header longer than the file": b"\xff" * 7 + b"\x7f" + b"{}",
    "truncated": header()[:-3],
    "nothing": b"",
}
ROUTE = "# route_trace v1\n# model=x n_layer={} n_expert={}\n{}\n"
COLUMNS = "turn,phase,step,layer,slot,expert,weight,residency,expert_bytes"
SOUND_ROW = "0,1,0,0,0,0,0.5,0,100\n"


def route(*rows, layers=2, experts=12, columns=COLUMNS):
    return (
        ROUTE.format(layers, experts, columns)
        + SOUND_ROW
        + SOUND_ROW.replace("0,0,0", "1,0,1")
        + "".join(rows)
    )


ROUTE_CSV = {
    "a nearly empty table": route("0,1,9,1,1,1,0.5,0,100\n0,1,7,59999,11,1,0.5,0,100\n", layers=60000),
    "no layers": route(layers=0),
    "layers beyond 16 bits": route(layers=70000),
    "negative expert": route("0,1,1,1,0,-1,0.5,0,100\n"),
    "step beyond 53 bits": route("0,1,1e300,1,0,1,0.5,0,100\n"),
    "weight beyond 16 bits": route("0,1,1,1,0,1,1e30,0,100\n"),
    "bytes beyond 64 bits": route("0,1,1,1,0,1,1,0,1e30\n"),
    "quotes": route('"0","1","1","1","0","1","1","0","1"\n'),
    "NUL": route("0,1,1,1,0,\0,1,0,1\n"),
    "a huge field": route("0,1,1,1,0," + "1" * 200_000 + ",1,0,1\n"),
    "a digit of another script": route("0,1,1,1,0,١,1,0,1\n"),
    "UTF-16": route().encode("utf-16"),
    "Latin-1": route("é").encode("latin-1"),
}
CSV = {
    "unknown columns": "when,what,size\n1,2,3\n",
    "a column twice": "time,object,id\n1,2,3\n",
    "no time": "object,size\n1,2\n",
    "object beyond 63 bits": "time,object\n0,9223372036854775808\n",
    "object of no layer": "time,object\n0,9223372036854775807\n",
    "negative object": "time,object\n0,-1\n",
    "negative size": "time,object,size\n0,1,-1\n",
    "float time": "time,object\n0.5,1\n",
    "underscores": "time,object\n0,1_0\n",
    "a cell more": "time,object\n0,1,2\n",
    "a cell less, without header": "0,1,2\n",
    "only a header": "time,object\n",
    "NUL": "time,object\n0,\0\n",
    "Latin-1": "time,object\n0,é\n".encode("latin-1"),
    "nothing": "",
    "many layers": "time,object\n" + "".join(f"{i},{i * 10_000}\n" for i in range(60)),
}


def records(*objects):
    found = np.zeros(len(objects), RECORD)
    found["time"], found["object"], found["size"], found["next"] = range(len(objects)), objects, 100, -1
    return found.tobytes()


BINARY = {
    "all bits set": records(2**64 - 1, 2**64 - 2),
    "beyond 63 bits": records(0, 1 << 63),
    "many layers": records(*(i * 104_729 % 480_000 for i in range(3000))),
    "truncated": records(0)[:-1],
    "nothing": b"",
}


def npy(shape="(2, 1, 2)", descr="'<i2'", data=bytes(8), order="False"):
    text = f"{{'descr': {descr}, 'fortran_order': {order}, 'shape': {shape}, }}".encode().ljust(118) + b"\n"
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text + data


NPY = {
    "floats": npy(descr="'<f4'", data=bytes(16)),
    "booleans": npy(descr="'|b1'", data=bytes(4)),
    "pickled objects": npy(descr="'|O'"),
    "named fields": npy(descr="[('a', '<i2')]"),
    "two dimensions": npy(shape="(2, 2)"),
    "negative shape": npy(shape="(-2, 1, -2)"),
    "a shape of terabytes": npy(shape="(1000000, 1000, 1000)"),
    "a shape beyond 64 bits": npy(shape="(10**30, 1, 1)".replace("10**30", str(10**30))),
    "no rows": npy(shape="(0, 1, 2)", data=b""),
    "truncated": npy()[:-1],
    "bytes behind it": npy() + b"\0",
    "a header that is code": npy(shape="__import__('os')"),
    "a header of brackets": npy(shape="(" * 50),
    "an unknown version": npy().replace(b"\x01\x00", b"\x09\x00", 1),
    "an id beyond the experts": npy(data=np.array([0, 1, 2, 12], "<i2").tobytes()),
    "an id below -1": npy(data=np.array([0, 1, 2, -2], "<i2").tobytes()),
    "an id beyond 16 bits": npy(descr="'<i8'", data=np.array([0, 1, 2, 1 << 40], "<i8").tobytes()),
    "only empty slots": npy(data=b"\xff" * 8),
}
KINDS = {
    ".safetensors": SAFETENSORS,
    ".route.csv": ROUTE_CSV,
    ".csv": CSV,
    ".oracleGeneral": BINARY,
    ".npy": NPY,
    ".unknown": {"an unknown ending": b"anything"},
}
FAULTY = [
    pytest.param(ending, content, id=f"{ending}, {what}")
    for ending, kinds in KINDS.items()
    for what, content in kinds.items()
]


def refused(command, *words):
    """The one line with which a command line is refused."""
    with pytest.raises(UserError) as error:
        simulate.run([command, *(str(word) for word in words)])
    message = str(error.value)
    assert "\n" not in message and len(message) < 700
    return message


def words_of(command, trace, folder):
    given = [word.replace("OUT", str(folder)).replace("TRACE", str(trace)) for word in COMMANDS[command]]
    hints = EXPERTS if trace.name.endswith((".npy", ".oracleGeneral")) or trace.suffixes == [".csv"] else ()
    return ["--trace", trace, *given, *hints]


@pytest.mark.parametrize(("ending", "content"), FAULTY)
def test_a_faulty_trace(ending, content, tmp_path):
    trace = tmp_path / f"t{ending}"
    trace.write_bytes(content.encode() if isinstance(content, str) else content)
    for command in COMMANDS:
        assert str(trace) in refused(command, *words_of(command, trace, tmp_path))
    assert list(tmp_path.iterdir()) == [trace]


@pytest.mark.parametrize("command", COMMANDS)
def test_what_is_no_file(command, tmp_path):
    (tmp_path / "loop.npy").symlink_to(tmp_path / "loop.npy")
    os.mkfifo(tmp_path / "pipe.safetensors")
    for name in ("loop.npy", "pipe.safetensors", ".", "none.csv", "n" * 300):
        assert "cannot be read" in refused(command, *words_of(command, tmp_path / name, tmp_path))
    assert "a device or a pipe" in refused(command, *words_of(command, type(tmp_path)("/dev/zero"), tmp_path))


@pytest.mark.parametrize("name", ["weights", "gate_probs"])
def test_values_that_are_no_numbers_are_named_by_step(name, tmp_path):
    values = np.full((2, 1, 2 if name == "weights" else 4), 0.5, np.float16)
    values[1, 0, 0] = np.nan
    write_tensors(tmp_path / "t.safetensors", TENSORS | {name: values}, METADATA)
    assert f"{name} at step 1" in refused("describe", "--trace", tmp_path / "t.safetensors")


WRONG_DEVICES = [
    "name = 1",
    "memory_gb = true",
    "memory_gb = [8]",
    "memory_gb = nan",
    f"memory_gb = {10**400}",
    f"memory_gb = {'9' * 5000}",
    "memory_gb = 1e-320",
    "memory_gb = 2024-01-01",
    "storage_latency_us = 1e300",
    "placement = 3",
    "[placement]\nwindow = 1.5",
    "[placement]\nwindow = 1000000000000",
    "[placement]\neta = 'x'",
    "name = [" + "[" * 10_000,
    "name = 'd'\nname = 'e'",
    b"\xff\xfe",
]


@pytest.mark.parametrize("text", WRONG_DEVICES, ids=range(len(WRONG_DEVICES)))
def test_a_wrong_device(text, tmp_path):
    trace, device = tmp_path / "t.safetensors", tmp_path / "d.toml"
    random_trace(0, expert_bytes=(100,) * 3).save(trace)
    device.write_bytes(text.encode() if isinstance(text, str) else text)
    for command in ("plan", "stall"):
        assert str(device) in refused(command, "--trace", trace, "--device", device)


def test_a_device_that_is_no_file(tmp_path):
    for path in (tmp_path, "/dev/zero", tmp_path / "none.toml"):
        assert "cannot be read" in refused("plan", "--trace", tmp_path / "t", "--device", path)


def nets(prefix="", inputs=2, outputs=1, hidden=5):
    shapes = {0: (hidden, inputs), 1: (hidden, hidden), 2: (outputs, hidden)}
    found = {f"{prefix}{part}.weight": np.ones((3, *shape)) for part, shape in shapes.items()}
    return found | {f"{prefix}{part}.bias": np.ones((3, shape[0])) for part, shape in shapes.items()}


CECAR = nets("short.") | nets("long.")
LAYOUTS = {"ml_cecar": "r, f", "ml_flashmoe": "r of all experts, then f of all experts"}
WRONG_WEIGHTS = {
    "a tensor less": ("ml_cecar", nets("short."), {"c0": "8"}),
    "other inputs": ("ml_cecar", CECAR | nets("long.", inputs=3), {"c0": "8"}),
    "layers that disagree": ("ml_cecar", CECAR | {"long.0.bias": np.ones((2, 5))}, {"c0": "8"}),
    "no layers": ("ml_cecar", {name: value[:0] for name, value in CECAR.items()}, {"c0": "8"}),
    "no c0": ("ml_cecar", CECAR, {}),
    "c0 of 0": ("ml_cecar", CECAR, {"c0": "0"}),
    "c0 of text": ("ml_cecar", CECAR, {"c0": "x"}),
    "inputs that do not fit outputs": ("ml_flashmoe", nets(inputs=12, outputs=12), {}),
    "NaN": ("ml_flashmoe", nets(inputs=24, outputs=12) | {"0.bias": np.full((3, 5), np.nan)}, {}),
}


@pytest.mark.parametrize(("policy", "tensors", "facts"), WRONG_WEIGHTS.values(), ids=WRONG_WEIGHTS)
def test_wrong_weights_of_a_learned_policy(policy, tensors, facts, tmp_path):
    trace, weights = tmp_path / "t.safetensors", tmp_path / "w.safetensors"
    random_trace(0).save(trace)
    save_weights(weights, policy, LAYOUTS[policy], tensors, facts)
    spec = f"{policy}:weights={weights}"
    assert str(weights) in refused("replay", "--trace", trace, "--policy", spec, "--capacity", 6)
    assert str(weights) in refused("curve", "--trace", trace, "--policies", spec)


def test_wrong_weights_of_habits(tmp_path):
    trace, weights = tmp_path / "t.safetensors", tmp_path / "w.safetensors"
    random_trace(0).save(trace)
    for spec in (
        f"ml_habits:weights={trace}",
        f"ml_habits:weights={tmp_path}",
        f"ml_habits:weights={weights}",
    ):
        assert str(tmp_path) in refused("replay", "--trace", trace, "--policy", spec, "--capacity", 6)


@pytest.mark.parametrize("early", [np.zeros((), np.float32), np.zeros((1, 3, 12), np.float64), None])
def test_wrong_predictions(early, tmp_path):
    trace, device, found = tmp_path / "t.safetensors", tmp_path / "d.toml", tmp_path / "p.safetensors"
    random_trace(0, expert_bytes=(100,) * 3).save(trace)
    tensors = {"prior": np.zeros((3, 12), np.float32)} | ({} if early is None else {"early": early})
    facts = {"format": "moe-use-predictions", "version": "1", "trace_digest": "0", "predictor": "p"}
    write_tensors(found, tensors, facts)
    device.write_text(
        "name = 'd'\nmemory_gb_per_second = 1.0\nstorage_gb_per_second = 1.0\nmemory_gb = 1.0\n"
        f"[placement]\nlookahead = 'recorded:file={found}'\n"
    )
    words = ("--trace", trace, "--device", device, "--tier_policies", "placement")
    assert str(found) in refused("stall", *words)


CAPACITIES = [
    "0",
    "-1",
    "nan",
    "inf",
    "13",
    "1.5",
    "",
    "x",
    "0%",
    "-5%",
    "101%",
    "nan%",
    "1e400",
    "٣",
    "1_0",
    "1_0%",
    "-1GB",
]


@pytest.mark.parametrize("capacity", CAPACITIES)
def test_a_wrong_capacity(capacity, tmp_path):
    trace = tmp_path / "t.safetensors"
    random_trace(0, requests=8, steps=120, expert_bytes=(100,) * 3).save(trace)
    for command, option in (("replay", "capacity"), ("curve", "capacities"), ("plan", "capacities")):
        words = [word for word in COMMANDS[command] if word not in ("--capacity", "6")]
        assert "capacity" in refused(command, "--trace", trace, *words, f"--{option}={capacity}")
    for option in ("capacity", "ram_capacity") if capacity != "0" else ():
        if capacity not in ("13",):  # of all 36 experts
            assert "capacity" in refused("stall", "--trace", trace, *DEVICE, f"--{option}={capacity}")


@pytest.mark.parametrize("command", COMMANDS)
def test_a_stray_word(command, tmp_path):
    assert "stray" in refused(
        command, *words_of(command, tmp_path / "t.csv", tmp_path), "--num_experts=3", "stray"
    )
