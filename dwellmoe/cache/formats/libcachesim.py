"""libCacheSim's traces, binary oracleGeneral and CSV: one access after the other, in router order.

An object is an expert by flat id; time is the token step; size is the expert's bytes, 1 for unknown; next is
the index of the next access to the same object, -1 for none. Phases, requests and weights are not in the
format: what is read back is one request of decode steps.
"""

from pathlib import Path

import numpy as np

from dwellmoe.cache.trace import DECODE, EMPTY, RoutingTrace
from dwellmoe.errors import UserError
from dwellmoe.files import replacing

SUFFIXES = (".oracleGeneral", ".oracleGeneral.bin", ".csv")
HINTS = ("num_experts",)
FIELDS = {"time": "<u4", "object": "<u8", "size": "<u4", "next": "<i8"}
RECORD = np.dtype(list(FIELDS.items()))
COLUMNS = "time,object,size,next_access_vtime"
NONE = -1


def recognise(head: bytes) -> bool:
    return head.startswith(COLUMNS.encode())


def read(path: Path, num_experts: int | None = None) -> RoutingTrace:
    """Splits accesses into token steps where the time changes, and into layers by object // num_experts."""
    if num_experts is None or num_experts < 1:
        raise UserError(f"{path}: the format does not state the experts a layer: give --num_experts")
    records = _read_csv(path) if path.name.endswith(".csv") else _read_binary(path)
    if len(records) == 0:
        raise UserError(f"{path}: the trace is empty")
    layer, expert = np.divmod(records["object"].astype(np.int64), num_experts)
    row = np.cumsum(np.append(0, records["time"][1:] != records["time"][:-1]))
    layers = int(layer.max()) + 1
    if layers > 1 << 16:
        raise UserError(
            f"{path}: object {int(records['object'].max())} is too large for {num_experts} experts a layer"
        )
    slot = _index_in_group(row * layers + layer)
    experts = np.full((row[-1] + 1, layers, slot.max() + 1), EMPTY, np.uint16)
    experts[row, layer, slot] = expert
    sizes = np.zeros(layers, np.int64)
    sizes[layer] = records["size"]
    steps = len(experts)
    try:
        return RoutingTrace(
            experts,
            np.full(steps, DECODE, np.uint8),
            np.zeros(steps, np.int32),
            num_experts,
            expert_bytes=tuple(sizes.tolist()) if sizes.max() > 1 else (),
            source=path.name,
        )
    except UserError as error:
        raise UserError(f"{path}: {error}") from None


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


def _read_binary(path: Path) -> np.ndarray:
    if path.stat().st_size % RECORD.itemsize:
        raise UserError(
            f"{path}: truncated: {path.stat().st_size} bytes are no multiple of {RECORD.itemsize}"
        )
    return np.fromfile(path, RECORD)


def _read_csv(path: Path) -> np.ndarray:
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()[1:]
    records = np.empty(len(lines), RECORD)
    for i, line in enumerate(lines):
        try:
            records[i] = tuple(int(value) for value in line.split(","))
        except (ValueError, TypeError, OverflowError):
            raise UserError(f"{path}, line {i + 2}: broken row '{line[:60]}': expected {COLUMNS}") from None
    return records
