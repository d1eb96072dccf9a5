"""`RoutingTrace`: the experts that each layer needed at each token step, and its file.

Letters: S token steps (rows), L MoE layers, K experts chosen, E routed experts a layer.
"""

import json
import mmap
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path

import numpy as np

from dwellmoe.cache.kernel.jit import compiled
from dwellmoe.cache.tensor_file import write_tensors
from dwellmoe.errors import UserError

PREFILL, DECODE = 0, 1
EMPTY = 65535  # a slot that a routing strategy left unused
SIGNED_EMPTY = -1  # the same where ids are signed, as routers and strategies give them
FORMAT, VERSION = "moe-routing-trace", "1"
MOST_EXPERT_BYTES = 1 << 40  # beyond it, sums over a trace may not fit into 64 bits
BLOCK_BYTES = 128 << 20  # of a mapped trace that is read at once

LAYOUT = {  # tensor -> dtype, shape in the letters above, must be present
    "experts": (np.uint16, "SLK", True),
    "phase": (np.uint8, "S", True),
    "request": (np.int32, "S", True),
    "weights": (np.float16, "SLK", False),
    "token_ids": (np.int32, "S", False),
    "gate_probs": (np.float16, "SLE", False),
    "chunk": (np.int32, "S", False),
    "batch_step": (np.int32, "S", False),
}


@dataclass(frozen=True, eq=False)
class RoutingTrace:
    """An immutable record of the experts that each layer needed at each token step.

    experts     uint16 [S, L, K]   in router order, largest routing weight first; 65535 is an empty slot
    phase       uint8 [S]          0 prefill, 1 decode; rows are in time order
    request     int32 [S]
    weights     float16 [S, L, K]  routing weights                              (optional, as all below)
    gate_probs  float16 [S, L, E]  the router's full distribution
    token_ids   int32 [S]
    chunk       int32 [S]          prefill rows run together; default: a request's whole prompt
    batch_step  int32 [S]          rows run together, also of several prompts; default: a decode row alone
    layer_ids   index of each layer in the decoder; expert_bytes: bytes of one expert a layer, 0 for unknown
    categories  request -> what kind of text it is, e.g. its data set; None where that was not recorded
    chat_template  whether prompts were worded by the tokenizer's chat template; None likewise

    Raises UserError for a wrong dtype or shape, an id >= E, an expert twice in one set, NaN weights, no rows.
    """

    experts: np.ndarray
    phase: np.ndarray
    request: np.ndarray
    num_experts: int
    layer_ids: Sequence[int] = ()
    expert_bytes: Sequence[int] = ()
    model: str = ""
    source: str = ""
    weights: np.ndarray | None = None
    token_ids: np.ndarray | None = None
    gate_probs: np.ndarray | None = None
    chunk: np.ndarray | None = None
    batch_step: np.ndarray | None = None
    categories: Mapping[int, str] | None = None
    chat_template: bool | None = None

    def __post_init__(self) -> None:
        for name in LAYOUT:
            if getattr(self, name) is not None:
                object.__setattr__(self, name, _read_only(getattr(self, name)))
        _check_shapes(self)
        layers = range(self.layers)
        object.__setattr__(self, "layer_ids", tuple(self.layer_ids or layers))
        object.__setattr__(self, "expert_bytes", tuple(self.expert_bytes or (0 for _ in layers)))
        _check_metadata(self)
        _check_values(self)

    @property
    def steps(self) -> int:
        return self.experts.shape[0]

    @property
    def layers(self) -> int:
        return self.experts.shape[1]

    @property
    def top_k(self) -> int:
        return self.experts.shape[2]

    def blocks(self) -> list[range]:
        """Consecutive ranges of rows, each about `BLOCK_BYTES` of experts."""
        rows = self.rows_in(BLOCK_BYTES)
        return [range(begin, min(begin + rows, self.steps)) for begin in range(0, self.steps, rows)]

    def rows_in(self, size_bytes: int) -> int:
        """Rows whose experts take about so many bytes."""
        return max(1, size_bytes // (self.layers * self.top_k * self.experts.itemsize))

    def take(self, rows: np.ndarray | slice) -> "RoutingTrace":
        """A trace of some of the rows, in the given order."""
        present = [name for name in LAYOUT if getattr(self, name) is not None]
        return replace(self, **{name: getattr(self, name)[rows] for name in present})

    def save(self, path: str | os.PathLike) -> None:
        """Writes the trace as one .safetensors file; the file appears complete or not at all."""
        tensors = {name: getattr(self, name) for name in LAYOUT if getattr(self, name) is not None}
        metadata = {
            "format": FORMAT,
            "version": VERSION,
            "model": self.model,
            "num_experts": str(self.num_experts),
            "layer_ids": json.dumps(self.layer_ids),
            "expert_bytes": json.dumps(self.expert_bytes),
            "source": self.source,
            **_known(self),
        }
        write_tensors(path, tensors, metadata)

    @classmethod
    def load(
        cls,
        path: str | os.PathLike,
        num_experts: int | None = None,
        prompt_tokens: int | None = None,
        top_k: int | None = None,
    ) -> "RoutingTrace":
        """Reads and checks a trace file in any format, known by its content; .safetensors is not copied.

        For the formats that do not state it: `num_experts` a layer, `prompt_tokens` of the request, and the
        `top_k` experts that a token chooses. Raises UserError.
        """
        from dwellmoe.cache.formats import read_trace  # the formats import this module

        return read_trace(Path(path), num_experts=num_experts, prompt_tokens=prompt_tokens, top_k=top_k)


def _known(trace: RoutingTrace) -> dict[str, str]:
    """The metadata that a file need not have, where it is known."""
    found = {}
    if trace.categories is not None:
        requests: dict[str, list[int]] = {}
        for request, category in trace.categories.items():
            requests.setdefault(category, []).append(int(request))
        found["categories"] = json.dumps(requests)
    if trace.chat_template is not None:
        found["chat_template"] = json.dumps(trace.chat_template)
    return found


def as_decode(trace: RoutingTrace, rows: np.ndarray | slice = slice(None)) -> RoutingTrace:
    """The given rows, each as a decoded token of its own: a prompt's tokens route as if they were decoded."""
    kept = {name: getattr(trace, name)[rows] for name in LAYOUT if getattr(trace, name) is not None}
    kept |= {"phase": np.full(len(kept["phase"]), DECODE, np.uint8), "chunk": None, "batch_step": None}
    return replace(trace, **kept)


def unsigned_ids(ids: np.ndarray) -> np.ndarray:
    """uint16 of signed ids: here `SIGNED_EMPTY` becomes `EMPTY`, which has the same 16 bits."""
    return ids.astype(np.int16, copy=False).view(np.uint16)


def release(array: np.ndarray) -> None:
    """Gives the pages of a mapped array back to the system; they are read again when they are used."""
    base = array
    while isinstance(base, np.ndarray) and base.base is not None:
        base = base.base
    if isinstance(base, mmap.mmap):
        base.madvise(mmap.MADV_DONTNEED)


def _read_only(array) -> np.ndarray:
    view = np.ascontiguousarray(array).view(np.ndarray)[...]
    view.flags.writeable = False
    return view


def _check_shapes(trace: RoutingTrace) -> None:
    if np.ndim(trace.experts) != 3:
        raise UserError(f"experts must be uint16 [steps, layers, top_k], got shape {np.shape(trace.experts)}")
    sizes = dict(zip("SLKE", (*trace.experts.shape, trace.num_experts), strict=True))
    if 0 in trace.experts.shape:
        raise UserError(f"the trace is empty: experts has shape {trace.experts.shape}")
    for name, (dtype, letters, _) in LAYOUT.items():
        array, shape = getattr(trace, name), tuple(sizes[letter] for letter in letters)
        if array is not None and (array.dtype != dtype or array.shape != shape):
            found = f"{array.dtype} {list(array.shape)}"
            raise UserError(f"{name} must be {np.dtype(dtype)} {list(shape)}, got {found}")


def _check_metadata(trace: RoutingTrace) -> None:
    if not isinstance(trace.num_experts, int | np.integer) or not trace.top_k <= trace.num_experts < EMPTY:
        raise UserError(
            f"num_experts must be a whole number between top_k = {trace.top_k} and {EMPTY - 1}, "
            f"got {trace.num_experts!s:.40}"
        )
    for field, most in (("layer_ids", 2**31 - 1), ("expert_bytes", MOST_EXPERT_BYTES)):
        values = getattr(trace, field)
        if len(values) != trace.layers:
            raise UserError(f"{field} must hold {trace.layers} numbers, one a layer, got {len(values)}")
        bad = [value for value in values if not 0 <= value <= most]
        if bad:
            raise UserError(f"{field} must hold {trace.layers} numbers from 0 to {most}, got {bad[0]}")


def _check_values(trace: RoutingTrace) -> None:
    bad_phase = np.flatnonzero(trace.phase > DECODE)
    if len(bad_phase):
        raise UserError(
            f"phase at step {bad_phase[0]} is {trace.phase[bad_phase[0]]}: choose from 0 prefill, 1 decode"
        )
    lowest = EMPTY
    for rows in trace.blocks():
        lowest = min(lowest, int(trace.experts[rows.start : rows.stop].min()))
        row, layer = _first_bad_set(trace.experts[rows.start : rows.stop], trace.num_experts)
        if row >= 0:
            ids = trace.experts[rows.start + row, layer].tolist()
            raise UserError(
                f"experts at step {rows.start + row}, layer {layer} are {ids}: "
                f"each must be below {trace.num_experts}, and none twice"
            )
        for name in ("weights", "gate_probs"):
            _check_finite(name, getattr(trace, name), rows)
        release(trace.experts)
    if lowest == EMPTY:
        raise UserError("the trace is empty: it has only empty slots")


def _check_finite(name: str, array: np.ndarray | None, rows: range) -> None:
    if array is None:
        return
    bad = ~np.isfinite(array[rows.start : rows.stop]).all(axis=(1, 2))
    release(array)
    if bad.any():
        raise UserError(f"{name} at step {rows.start + int(bad.argmax())} is NaN or infinite")


@compiled
def _first_bad_set(experts, num_experts):
    """(row, layer) of the first set with an id out of range or twice; (-1, -1) if there is none."""
    seen = np.full(num_experts, -1, np.int64)
    for row in range(experts.shape[0]):
        for layer in range(experts.shape[1]):
            index = row * experts.shape[1] + layer
            for slot in range(experts.shape[2]):
                expert = experts[row, layer, slot]
                if expert == EMPTY:
                    continue
                if expert >= num_experts or seen[expert] == index:
                    return row, layer
                seen[expert] = index
    return -1, -1


assert set(LAYOUT) <= {field.name for field in fields(RoutingTrace)}
