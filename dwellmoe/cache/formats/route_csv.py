"""`route_trace v1`: a text file with a line for each expert chosen.

First `#` lines, some with `n_layer= n_expert= n_expert_used=` or `layer= expert_bytes=`; then column names;
then `turn,phase,step,layer,slot,expert,weight,residency,expert_bytes`, phase 0 for prefill and 1 for decode,
slots in router order.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from dwellmoe.cache.memory import check_filled
from dwellmoe.cache.text_trace import broken_row, check_range, read_lines, whole_number
from dwellmoe.cache.trace import DECODE, EMPTY, MOST_EXPERT_BYTES, RoutingTrace
from dwellmoe.errors import UserError
from dwellmoe.files import replacing

SUFFIXES = (".route.csv",)
HINTS = ()
FIRST_LINE = "# route_trace v1"
COLUMNS = "turn,phase,step,layer,slot,expert,weight,residency,expert_bytes"
TURN, PHASE, STEP, LAYER, SLOT, EXPERT, WEIGHT, RESIDENCY, EXPERT_BYTES = range(9)
MOST_EXACT = 1 << 53  # whole numbers up to it are exact in float64
MOST_WEIGHT = 65504  # of float16


def recognise(head: bytes) -> bool:
    return head.startswith(FIRST_LINE.encode())


def read(path: Path) -> RoutingTrace:
    """Reads a whole file. UserError names the line of a broken row."""
    lines = read_lines(path)
    header = _read_header(path, lines)
    table = _read_table(path, header.first_row, lines[header.first_row - 1 :])
    _check_ranges(path, header, table)
    if header.layers > table[:, LAYER].max() + 1:
        raise UserError(
            f"{path}: the header says n_layer={header.layers}, the last layer in the rows is "
            f"{int(table[:, LAYER].max())}: truncated?"
        )
    steps, row = np.unique(table[:, [TURN, PHASE, STEP]], axis=0, return_inverse=True)
    index = row.ravel(), table[:, LAYER].astype(np.intp), table[:, SLOT].astype(np.intp)
    shape = len(steps), header.layers, int(table[:, SLOT].max()) + 1
    check_filled(path, shape, len(table))
    _check_once(path, header.first_row, index, shape)
    experts = np.full(shape, EMPTY, np.uint16)
    weights = np.zeros(shape, np.float16)
    experts[index] = table[:, EXPERT]
    weights[index] = table[:, WEIGHT]
    try:
        return RoutingTrace(
            experts,
            phase=steps[:, 1].astype(np.uint8),
            request=steps[:, 0].astype(np.int32),
            num_experts=header.experts,
            expert_bytes=_expert_bytes(header, table),
            model=header.model,
            source=path.name,
            weights=weights,
        )
    except UserError as error:
        raise UserError(f"{path}: {error}") from None


def write(trace: RoutingTrace, path: str | Path) -> None:
    """Writes a trace; tokens of a request are numbered through, prefill before decode."""
    with replacing(path) as file:
        for line in _lines(trace):
            file.write(line.encode() + b"\n")


def _lines(trace: RoutingTrace) -> Iterator[str]:
    yield FIRST_LINE
    sizes = f"n_layer={trace.layers} n_expert={trace.num_experts} n_expert_used={trace.top_k}"
    yield f"# model={trace.model or 'unknown'} {sizes}"
    for layer, size in enumerate(trace.expert_bytes):
        yield f"# layer={layer} expert_bytes={size}"
    yield COLUMNS
    step_of: dict[int, int] = {}
    for row in range(trace.steps):
        request, phase = int(trace.request[row]), int(trace.phase[row])
        step = step_of[request] = step_of.get(request, -1) + 1
        for layer, slot in np.argwhere(trace.experts[row] != EMPTY).tolist():
            weight = 0.0 if trace.weights is None else float(trace.weights[row, layer, slot])
            expert = trace.experts[row, layer, slot]
            columns = f"{request},{phase},{step},{layer},{slot}"
            yield f"{columns},{expert},{weight:.6g},0,{trace.expert_bytes[layer]}"


@dataclass
class _Header:
    """The values of the `#` lines."""

    model: str = ""
    layers: int = 0
    experts: int = 0
    top_k: int = EMPTY  # not stated: whatever the rows have
    bytes: dict[int, int] = field(default_factory=dict)  # of one expert of each layer that is stated
    first_row: int = 0  # line number of the first row, from 1


def _read_header(path: Path, lines: list[str]) -> _Header:
    header = _Header()
    for number, line in enumerate(lines, 1):
        if not line.startswith("#"):
            break
        given = dict(re.findall(r"(\w+)=(\S+)", line))
        header.model = given.get("model", header.model)
        for name, key in (("layers", "n_layer"), ("experts", "n_expert"), ("top_k", "n_expert_used")):
            if key in given:
                setattr(header, name, _whole(path, number, key, given[key], EMPTY - 1))
        if "layer" in given and "expert_bytes" in given:
            layer = _whole(path, number, "layer", given["layer"], EMPTY - 1)
            size_bytes = _whole(path, number, "expert_bytes", given["expert_bytes"], MOST_EXPERT_BYTES)
            header.bytes[layer] = size_bytes
    else:
        raise UserError(f"{path}: truncated: no rows")
    if line.strip() != COLUMNS:
        raise UserError(f"{path}, line {number}: expected the columns {COLUMNS}, got {line[:60]!r}")
    if not header.layers or not header.experts:
        raise UserError(f"{path}: the header lacks n_layer= or n_expert=, numbers above 0")
    header.first_row = number + 1
    return header


def _whole(path: Path, number: int, name: str, text: str, most: int) -> int:
    value = whole_number(text)
    if value is None or not 0 <= value <= most:
        raise UserError(
            f"{path}, line {number}: {name}: expected a whole number from 0 to {most}, got {text[:40]!r}"
        )
    return value


def _read_table(path: Path, first_row: int, lines: list[str]) -> np.ndarray:
    """float64 [rows, 9]."""
    if not lines:
        raise UserError(f"{path}: the trace is empty: no rows after the columns")
    width = len(COLUMNS.split(","))
    try:
        table = np.loadtxt(lines, delimiter=",", ndmin=2, comments=None)
    except ValueError:
        table = np.empty((0, 0))
    if table.shape != (len(lines), width):
        number, line = next(
            (found for found in enumerate(lines, first_row) if not _is_row(found[1], width)),
            (first_row, lines[0]),  # Python reads more as a number than NumPy does
        )
        raise broken_row(path, number, line, COLUMNS)
    return table


def _is_row(line: str, width: int) -> bool:
    try:
        return len([float(text) for text in line.split(",")]) == width
    except ValueError:
        return False


def _check_ranges(path: Path, header: _Header, table: np.ndarray) -> None:
    """UserError for the first value of a column that cannot be."""
    slots = min(header.top_k, header.experts)
    most = {
        TURN: 2**31 - 1,
        PHASE: DECODE,
        STEP: MOST_EXACT,
        LAYER: header.layers - 1,
        SLOT: slots - 1,
        EXPERT: header.experts - 1,
        RESIDENCY: MOST_EXACT,
        EXPERT_BYTES: MOST_EXPERT_BYTES,
    }
    for column, limit in most.items():
        check_range(path, "line", header.first_row, COLUMNS.split(",")[column], table[:, column], limit)
    bad = np.flatnonzero(~(np.abs(table[:, WEIGHT]) <= MOST_WEIGHT))
    if len(bad):
        raise UserError(
            f"{path}, line {header.first_row + bad[0]}: weight is {table[bad[0], WEIGHT]}, out of range: "
            f"expected a number from -{MOST_WEIGHT} to {MOST_WEIGHT}"
        )


def _check_once(path: Path, first_row: int, index: tuple, shape: tuple) -> None:
    flat = np.asarray(np.ravel_multi_index(index, shape))
    first = np.unique(flat, return_index=True)[1]
    if first.size < flat.size:
        again = np.setdiff1d(np.arange(flat.size), first)[0]
        raise UserError(
            f"{path}, line {first_row + int(again)}: this step, layer and slot are in the file twice"
        )


def _expert_bytes(header: _Header, table: np.ndarray) -> tuple[int, ...]:
    """From the header; for a layer that it leaves out, the largest value in its rows."""
    in_rows = np.zeros(header.layers, np.int64)
    np.maximum.at(in_rows, table[:, LAYER].astype(np.intp), table[:, EXPERT_BYTES].astype(np.int64))
    return tuple(header.bytes.get(layer, int(in_rows[layer])) for layer in range(header.layers))
