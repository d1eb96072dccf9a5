"""`route_trace v1`: a text file with a line for each expert chosen.

First `#` lines, some with `n_layer= n_expert= n_expert_used=` or `layer= expert_bytes=`; then column names;
then `turn,phase,step,layer,slot,expert,weight,residency,expert_bytes`, phase 0 for prefill and 1 for decode,
slots in router order.
"""

import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from dwellmoe.cache.trace import DECODE, EMPTY, PREFILL, RoutingTrace
from dwellmoe.errors import UserError
from dwellmoe.files import replacing

SUFFIXES = (".route.csv",)
HINTS = ()
FIRST_LINE = "# route_trace v1"
COLUMNS = "turn,phase,step,layer,slot,expert,weight,residency,expert_bytes"
TURN, PHASE, STEP, LAYER, SLOT, EXPERT, WEIGHT, _, EXPERT_BYTES = range(9)


def recognise(head: bytes) -> bool:
    return head.startswith(FIRST_LINE.encode())


def read(path: Path) -> RoutingTrace:
    """Reads a whole file. UserError names the line of a broken row."""
    header, first_row = _read_header(path)
    table = _read_table(path, first_row)
    layers, top_k = header["n_layer"], int(table[:, SLOT].max()) + 1
    _check_ranges(path, first_row, table, layers, header["n_expert"])
    if layers > table[:, LAYER].max() + 1:
        raise UserError(
            f"{path}: the header says n_layer={layers}, the last layer in the rows is "
            f"{int(table[:, LAYER].max())}: truncated?"
        )
    steps, row = np.unique(table[:, [TURN, PHASE, STEP]], axis=0, return_inverse=True)
    index = row.ravel(), table[:, LAYER].astype(np.intp), table[:, SLOT].astype(np.intp)
    _check_once(path, first_row, index, (len(steps), layers, top_k))
    experts = np.full((len(steps), layers, top_k), EMPTY, np.uint16)
    weights = np.zeros(experts.shape, np.float16)
    experts[index] = table[:, EXPERT]
    weights[index] = table[:, WEIGHT]
    try:
        return RoutingTrace(
            experts,
            phase=steps[:, 1].astype(np.uint8),
            request=steps[:, 0].astype(np.int32),
            num_experts=header["n_expert"],
            expert_bytes=_expert_bytes(header, table, layers),
            model=header["model"],
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


def _read_header(path: Path) -> tuple[dict, int]:
    """The values of the `#` lines, and the line number of the first row, from 1."""
    header: dict = {"model": "", "bytes": {}}
    with open(path, encoding="utf-8", errors="replace") as file:
        for number, line in enumerate(file, 1):
            if not line.startswith("#"):
                break
            given = dict(re.findall(r"(\w+)=(\S+)", line))
            header["model"] = given.get("model", header["model"])
            for name in ("n_layer", "n_expert"):
                if name in given:
                    header[name] = _whole(path, number, given[name])
            if "layer" in given and "expert_bytes" in given:
                header["bytes"][_whole(path, number, given["layer"])] = _whole(
                    path, number, given["expert_bytes"]
                )
        else:
            raise UserError(f"{path}: truncated: no rows")
    if line.strip() != COLUMNS:
        raise UserError(f"{path}, line {number}: expected the columns {COLUMNS}")
    if not {"n_layer", "n_expert"} <= set(header) or header["n_layer"] < 1:
        raise UserError(f"{path}: the header lacks n_layer= or n_expert=")
    return header, number + 1


def _whole(path: Path, number: int, text: str) -> int:
    if not text.isdecimal():
        raise UserError(f"{path}, line {number}: expected a whole number, got '{text}'")
    return int(text)


def _read_table(path: Path, first_row: int) -> np.ndarray:
    """float64 [rows, 9]."""
    try:
        text = path.read_text(encoding="utf-8").splitlines()[first_row - 1 :]
        if not any(line.strip() for line in text):
            raise UserError(f"{path}: the trace is empty: no rows after the columns")
        table = np.loadtxt(text, delimiter=",", ndmin=2, comments=None)
    except UnicodeDecodeError:
        raise UserError(f"{path}: not a text file") from None
    except UserError:
        raise
    except ValueError:
        raise _first_broken(path, first_row, text) from None
    if table.shape[1] != len(COLUMNS.split(",")) or len(table) != len(text):
        raise _first_broken(path, first_row, text)
    return table


def _first_broken(path: Path, first_row: int, text: list[str]) -> UserError:
    for number, line in enumerate(text, first_row):
        try:
            good = len([float(value) for value in line.split(",")]) == len(COLUMNS.split(","))
        except ValueError:
            good = False
        if not good:
            return UserError(f"{path}, line {number}: broken row '{line[:60]}': expected {COLUMNS}")
    return UserError(f"{path}: rows cannot be read")


def _check_ranges(path: Path, first_row: int, table: np.ndarray, layers: int, experts: int) -> None:
    whole = np.delete(table, WEIGHT, axis=1)
    good = np.isfinite(table).all(axis=1) & (whole >= 0).all(axis=1) & (whole == np.floor(whole)).all(axis=1)
    good &= (table[:, PHASE] <= DECODE) & (table[:, LAYER] < layers) & (table[:, EXPERT] < experts)
    good &= (table[:, SLOT] < experts) & (table[:, TURN] < 2**31)
    if not good.all():
        number = first_row + int((~good).argmax())
        ranges = f"phase {PREFILL} or {DECODE}, layer < {layers}, slot and expert < {experts}, weight finite"
        raise UserError(f"{path}, line {number}: value out of range: {ranges}, whole numbers >= 0")


def _check_once(path: Path, first_row: int, index: tuple, shape: tuple) -> None:
    flat = np.asarray(np.ravel_multi_index(index, shape))
    first = np.unique(flat, return_index=True)[1]
    if first.size < flat.size:
        again = np.setdiff1d(np.arange(flat.size), first)[0]
        raise UserError(
            f"{path}, line {first_row + int(again)}: this step, layer and slot are in the file twice"
        )


def _expert_bytes(header: dict, table: np.ndarray, layers: int) -> tuple[int, ...]:
    """From the header; for a layer that it leaves out, the largest value in its rows."""
    in_rows = np.zeros(layers, np.int64)
    np.maximum.at(in_rows, table[:, LAYER].astype(np.intp), table[:, EXPERT_BYTES].astype(np.int64))
    return tuple(header["bytes"].get(layer, int(in_rows[layer])) for layer in range(layers))
