"""libCacheSim's traces, binary oracleGeneral and CSV: one access after the other, in router order.

An object is an expert by flat id; time is the token step; size is the expert's bytes, 1 for unknown; next is
the index of the next access to the same object, -1 for none. Phases, requests and weights are not in the
format: what is read back is one request of decode steps.

A CSV may have columns for the token, the layer and the expert instead, as a program that logs a router does.
"""

import codecs
from pathlib import Path
from typing import NamedTuple

import numpy as np

from dwellmoe.cache.formats import check_num_experts
from dwellmoe.cache.memory import check_filled, check_memory
from dwellmoe.cache.text_trace import broken_row, check_range, read_lines, whole_number
from dwellmoe.cache.trace import DECODE, EMPTY, MOST_EXPERT_BYTES, RoutingTrace
from dwellmoe.errors import UserError
from dwellmoe.files import replacing
from dwellmoe.log import warn_once

SUFFIXES = (".oracleGeneral", ".oracleGeneral.bin", ".csv")
HINTS = ("num_experts",)
FIELDS = {"time": "<u4", "object": "<u8", "size": "<u4", "next": "<i8"}
RECORD = np.dtype(list(FIELDS.items()))
COLUMNS = "time,object,size,next_access_vtime"
NAMES = {
    "time": ("time", "timestamp", "ts"),
    "object": ("object", "object_id", "obj", "obj_id", "id", "key"),
    "size": ("size", "object_size", "obj_size", "expert_bytes"),
}
"""What a column is read as -> its names in headers; no other column is read."""
ROUTER_NAMES = {
    "time": ("token", "step", "token_step", "token_index", "token_idx", "position", "pos", *NAMES["time"]),
    "layer": ("layer", "layer_id", "layer_index", "layer_idx"),
    "expert": ("expert", "expert_id", "expert_index", "expert_idx"),
    "size": NAMES["size"],
}
"""The same of a CSV with a column for the layer and one for the expert."""
NONE = -1
BYTES_A_RECORD = 200  # of memory, while it is read
MOST_LAYERS = 1 << 16
MOST_TIME = (1 << 63) - 1


class Accesses(NamedTuple):
    """One access after the other."""

    time: np.ndarray
    object: np.ndarray
    size: np.ndarray
    place: str  # the word for where one stands in its file, "record" or "line"
    first: int  # the number of the first


def recognise(head: bytes) -> bool:
    return head.startswith(COLUMNS.encode())


def read(path: Path, num_experts: int | None = None) -> RoutingTrace:
    """Splits accesses into token steps where the time changes, and into layers by object // num_experts.

    The columns of a CSV are found by the names in its first line or, where it has none, taken in the order of
    `COLUMNS`.
    """
    num_experts = check_num_experts(path, num_experts)
    accesses = _read_csv(path, num_experts) if _is_csv(path) else _read_binary(path)
    if len(accesses.time) == 0:
        raise UserError(f"{path}: the trace is empty")
    place = path, accesses.place, accesses.first
    check_range(*place, "time", accesses.time, MOST_TIME)
    check_range(*place, "object", accesses.object, MOST_LAYERS * num_experts - 1)
    check_range(*place, "size", accesses.size, MOST_EXPERT_BYTES)
    layer, expert = np.divmod(accesses.object.astype(np.int64), num_experts)
    row = np.cumsum(np.append(0, accesses.time[1:] != accesses.time[:-1]))
    layers = int(layer.max()) + 1
    slot = _index_in_group(row * layers + layer)
    shape = int(row[-1]) + 1, layers, int(slot.max()) + 1
    check_filled(path, shape, len(row))
    if np.bincount(row[slot == 0]).max() < layers:
        warn_once(f"{path}: no time has accesses to all {layers} layers; each time is one token step")
    experts = np.full(shape, EMPTY, np.uint16)
    experts[row, layer, slot] = expert
    try:
        return RoutingTrace(
            experts,
            np.full(len(experts), DECODE, np.uint8),
            np.zeros(len(experts), np.int32),
            num_experts,
            expert_bytes=_expert_bytes(path, layer, accesses.size.astype(np.int64), layers),
            source=path.name,
        )
    except UserError as error:
        raise UserError(f"{path}: {error}") from None


def _expert_bytes(path: Path, layer: np.ndarray, size: np.ndarray, layers: int) -> tuple[int, ...]:
    """The size of the objects of each layer; () where none is stated or they differ."""
    sizes = np.zeros(layers, np.int64)
    sizes[layer] = size
    if (sizes[layer] != size).any():
        warn_once(f"{path}: objects of one layer have several sizes; bytes are not counted")
        return ()
    return tuple(sizes.tolist()) if sizes.max() > 1 else ()


def write(trace: RoutingTrace, path: str | Path) -> None:
    """Writes the accesses of all rows."""
    records = records_of(trace)
    with replacing(path) as file:
        if str(path).endswith(".csv"):
            file.write(COLUMNS.encode() + b"\n")
            np.savetxt(file, np.stack([records[name].astype(np.int64) for name in FIELDS], 1), "%d", ",")
        else:
            file.write(records.tobytes())


def records_of(trace: RoutingTrace) -> np.ndarray:
    """RECORD [accesses] of all rows, token after token and layer after layer."""
    row, layer, slot = np.nonzero(trace.experts != EMPTY)
    records = np.empty(len(row), RECORD)
    records["time"] = row
    records["object"] = layer * trace.num_experts + trace.experts[row, layer, slot]
    records["size"] = np.maximum(np.asarray(trace.expert_bytes), 1)[layer]
    records["next"] = _next_access(records["object"])
    return records


def _next_access(objects: np.ndarray) -> np.ndarray:
    """int64 [accesses]: index of the next access to the same object."""
    order = np.argsort(objects, kind="stable")
    following = np.full(len(objects), NONE, np.int64)
    same = objects[order[1:]] == objects[order[:-1]]
    following[order[:-1][same]] = order[1:][same]
    return following


def _index_in_group(group: np.ndarray) -> np.ndarray:
    """int64: how many earlier entries belong to the same group."""
    order = np.argsort(group, kind="stable")
    run_start = np.append(0, np.flatnonzero(np.diff(group[order])) + 1)
    lengths = np.diff(np.append(run_start, len(group)))
    index = np.empty(len(group), np.int64)
    index[order] = np.arange(len(group)) - np.repeat(run_start, lengths)
    return index


def _is_csv(path: Path) -> bool:
    with open(path, "rb") as file:
        head = file.read(len(codecs.BOM_UTF8) + len(COLUMNS))
    return path.name.endswith(".csv") or recognise(head.removeprefix(codecs.BOM_UTF8))


def _read_binary(path: Path) -> Accesses:
    size_bytes = path.stat().st_size
    if size_bytes % RECORD.itemsize:
        raise UserError(f"{path}: truncated: {size_bytes} bytes are no multiple of {RECORD.itemsize}")
    check_memory(size_bytes / RECORD.itemsize * BYTES_A_RECORD, f"{path}: reading it")
    records = np.fromfile(path, RECORD)
    return Accesses(records["time"], records["object"], records["size"], "record", 1)


def _read_csv(path: Path, num_experts: int) -> Accesses:
    lines = read_lines(path)
    cells = lines[0].split(",") if lines else []
    header = not any(map(_is_number, cells))
    if header:
        width, index = len(cells), _columns(path, cells)
    else:
        width, index = len(FIELDS), {name: i for i, name in enumerate(NAMES)}
        warn_once(f"{path}: has no header; its columns are taken as {COLUMNS}")
    rows = [_row(path, number, line, width, index) for number, line in enumerate(lines[header:], 1 + header)]
    table = dict(zip(index, np.array(rows, np.int64).reshape(-1, len(index)).T, strict=True))
    first = 1 + header
    objects = table["object"] if "object" in table else _objects(path, first, table, num_experts)
    size = table.get("size", np.zeros(len(rows), np.int64))
    return Accesses(table["time"], objects, size, "line", first)


def _objects(path: Path, first: int, table: dict[str, np.ndarray], num_experts: int) -> np.ndarray:
    """Flat ids of a table of tokens, layers and experts. UserError where its tokens are out of order."""
    check_range(path, "line", first, "layer", table["layer"], MOST_LAYERS - 1)
    check_range(path, "line", first, "expert", table["expert"], num_experts - 1)
    earlier = np.flatnonzero(np.diff(table["time"]) < 0)
    if len(earlier):
        at = int(earlier[0]) + 1
        raise UserError(
            f"{path}, line {first + at}: token {table['time'][at]} comes after {table['time'][at - 1]}: "
            "sort the rows by token, and number the tokens of all requests through"
        )
    return table["layer"] * num_experts + table["expert"]


def _columns(path: Path, cells: list[str]) -> dict[str, int]:
    """The columns that are read and where they stand. UserError where one is missing or there twice."""
    names = [cell.strip(' #"\r').lower().replace("-", "_").replace(" ", "_") for cell in cells]
    of_router = set(names) & {*ROUTER_NAMES["layer"], *ROUTER_NAMES["expert"]}
    columns = ROUTER_NAMES if of_router and not set(names) & set(NAMES["object"]) else NAMES
    index = {}
    for column, known in columns.items():
        found = [i for i, name in enumerate(names) if name in known]
        if len(found) > 1 or (not found and column != "size"):
            listed = ", ".join(names)[:80]
            raise UserError(
                f"{path}, line 1: needs one column '{known[0]}' (or {', '.join(known[1:])}), got {listed!r}: "
                f"a trace has the columns {COLUMNS}, or token,layer,expert"
            )
        index |= {column: found[0]} if found else {}
    unread = [name for name in names if name not in sum(columns.values(), ()) and not name.startswith("next")]
    if unread:
        warn_once(f"{path}: columns that are not read: {', '.join(unread)!r:.80}")
    return index


def _row(path: Path, number: int, line: str, width: int, index: dict[str, int]) -> list[int]:
    """The values of one line that are read."""
    texts = line.split(",")
    found = [whole_number(texts[i].strip('" \r')) for i in index.values()] if len(texts) == width else []
    values = [value for value in found if value is not None and abs(value) <= MOST_TIME]
    if len(values) < len(index):
        expected = f"{width} columns, whole numbers below 2**63 in {', '.join(index)}"
        raise broken_row(path, number, line, expected)
    return values


def _is_number(text: str) -> bool:
    try:
        float(text.strip(' "'))
    except ValueError:
        return False
    return True
