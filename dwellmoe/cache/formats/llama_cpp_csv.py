"""The CSV of llama.cpp's proposed example moe-trace (pull request 28544): a line `layer,expert` for each
expert chosen, without a header, in the order in which the layers of a pass run.

A pass goes through the layers in ascending order. Of each it has K lines a token; of the last layer a
prompt's pass may have only its last token's, for llama.cpp computes no other there. Passes of one token are
decode, longer ones prefill; prefill after decode begins another request, as where several files were joined.
"""

import re
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np

from dwellmoe.cache.access import passes_of
from dwellmoe.cache.formats import check_num_experts
from dwellmoe.cache.memory import check_filled
from dwellmoe.cache.text_trace import broken_row, check_range, read_lines, whole_number
from dwellmoe.cache.trace import DECODE, EMPTY, PREFILL, RoutingTrace
from dwellmoe.errors import UserError
from dwellmoe.files import replacing
from dwellmoe.log import warn_once

SUFFIXES = (".moe_trace.csv",)
HINTS = ("num_experts", "top_k")
COLUMNS = "layer,expert"
FIRST_LINE = re.compile(rb"(layer,expert|\d{1,6},\d{1,6})\r?\n")
MOST_LAYERS = 1 << 16
STRIDES = (
    "prefill as the tool's first version writes it is not what the model chose beyond each chunk's first "
    "token; "
    "only decode is sure"
)


class Run(NamedTuple):
    """Consecutive lines of one layer."""

    layer: int
    begin: int
    end: int

    @property
    def lines(self) -> int:
        return self.end - self.begin


def recognise(head: bytes) -> bool:
    return FIRST_LINE.match(head) is not None


def read(path: Path, num_experts: int | None = None, top_k: int | None = None) -> RoutingTrace:
    """`top_k`, if it is not given, is the fewest lines that a layer has in a pass."""
    num_experts = check_num_experts(path, num_experts)
    table, first = _table(path, num_experts)
    passes = _passes(path, table[:, 0], first)
    top_k = top_k or _fewest_lines(path, passes)
    if not 1 <= top_k <= num_experts:
        raise UserError(f"{path}: a token chooses {top_k} of {num_experts} experts? give --top_k")
    layers = [run.layer for run in passes[0]]
    tokens = [_tokens(path, runs, top_k, first) for runs in passes]
    shape = sum(tokens), len(layers), top_k
    check_filled(path, shape, len(table))
    experts = np.full(shape, EMPTY, np.uint16)
    begin = 0
    for runs, count in zip(passes, tokens, strict=True):
        for index, run in enumerate(runs):
            chosen = table[run.begin : run.end, 1].reshape(-1, top_k)
            experts[begin + count - len(chosen) : begin + count, index] = chosen
        begin += count
    return _trace(path, experts, np.array(tokens), num_experts, layers)


def _fewest_lines(path: Path, passes: list[list[Run]]) -> int:
    fewest = min(run.lines for runs in passes for run in runs)
    warn_once(
        f"{path}: K is taken as {fewest}, the fewest lines that a layer has in a pass; --top_k states it"
    )
    return fewest


def _trace(
    path: Path, experts: np.ndarray, tokens: np.ndarray, num_experts: int, layers: list[int]
) -> RoutingTrace:
    phase = np.where(tokens > 1, PREFILL, DECODE).astype(np.uint8)
    if (phase == PREFILL).any():
        warn_once(f"{path}: {STRIDES}")
    begins_request = (phase == PREFILL) & np.append(False, phase[:-1] == DECODE)
    passes = np.arange(len(tokens), dtype=np.int32)
    try:
        return RoutingTrace(
            experts,
            np.repeat(phase, tokens),
            np.repeat(np.cumsum(begins_request), tokens).astype(np.int32),
            num_experts,
            layer_ids=layers,
            source=path.name,
            chunk=np.repeat(passes, tokens),
        )
    except UserError as error:
        raise UserError(f"{path}: {error}; K is taken as {experts.shape[2]} (--top_k)") from None


def _table(path: Path, num_experts: int) -> tuple[np.ndarray, int]:
    """int64 [lines, 2], layers and experts; and the number of the first line."""
    lines = read_lines(path)
    first = 1 + (lines[0].strip() == COLUMNS)
    lines = lines[first - 1 :]
    if not lines:
        raise UserError(f"{path}: the trace is empty")
    try:
        table = np.loadtxt(lines, np.int64, delimiter=",", ndmin=2, comments=None)
    except (ValueError, OverflowError):
        table = np.empty((0, 0))
    if table.shape != (len(lines), 2):
        rows = enumerate(lines, first)
        number, line = next((row for row in rows if not _is_row(row[1])), (first, lines[0]))
        raise broken_row(path, number, line, COLUMNS)
    check_range(path, "line", first, "layer", table[:, 0], MOST_LAYERS - 1)
    check_range(path, "line", first, "expert", table[:, 1], num_experts - 1)
    return table, first


def _is_row(line: str) -> bool:
    cells = line.split(",")
    return len(cells) == 2 and None not in map(whole_number, cells)


def _passes(path: Path, layer: np.ndarray, first: int) -> list[list[Run]]:
    """The passes, each with a run of every layer; a last one that was not written to its end is left out."""
    edges = [0, *(np.flatnonzero(np.diff(layer)) + 1).tolist(), len(layer)]
    passes: list[list[Run]] = []
    for begin, end in pairwise(edges):
        run = Run(int(layer[begin]), begin, end)
        if passes and run.layer > passes[-1][-1].layer:
            passes[-1].append(run)
        else:
            passes.append([run])
    layers = [run.layer for run in passes[0]]
    if len(passes) > 1 and not _is_whole(passes[-1], layers, passes[-2]):
        warn_once(f"{path}: the last pass ends early and is left out")
        passes.pop()
    for runs in passes:
        if [run.layer for run in runs] != layers:
            found = ", ".join(str(run.layer) for run in runs)[:60]
            raise UserError(
                f"{path}, line {first + runs[0].begin}: a pass has the layers {found}, the first one "
                f"{', '.join(map(str, layers))[:60]}"
            )
    return passes


def _is_whole(runs: list[Run], layers: list[int], before: list[Run]) -> bool:
    """Whether a last pass has every layer, and of its last one as much as of a token."""
    fewest = min(run.lines for run in before)
    return [run.layer for run in runs] == layers and runs[-1].lines % fewest == 0


def _tokens(path: Path, runs: list[Run], top_k: int, first: int) -> int:
    """Tokens of a pass. UserError where its layers differ, but for a shorter last one."""
    for run in runs:
        shorter = run is runs[-1] and run.lines < runs[0].lines
        if run.lines % top_k or (run.lines != runs[0].lines and not shorter):
            raise UserError(
                f"{path}, line {first + run.begin}: {run.lines} lines of layer {run.layer}: expected as many "
                f"as of layer {runs[0].layer}, {runs[0].lines}, and a multiple of K = {top_k} (--top_k)"
            )
    return max(run.lines for run in runs) // top_k


def write(trace: RoutingTrace, path: str | Path) -> None:
    """Writes the chosen experts, pass after pass; UserError for a trace with empty slots."""
    if (trace.experts == EMPTY).any():
        raise UserError(f"{path}: the format has no place for empty slots")
    with replacing(path) as file:
        for text in _lines(trace):
            file.write(text.encode())


def _lines(trace: RoutingTrace) -> Iterator[str]:
    passes = passes_of(trace, "all")
    for begin, end in zip(passes.begin.tolist(), passes.end.tolist(), strict=True):
        for index, layer in enumerate(trace.layer_ids):
            chosen = trace.experts[begin:end, index].ravel().tolist()
            yield "".join(f"{layer},{expert}\n" for expert in chosen)
