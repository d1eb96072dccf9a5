"""Router logits as transformers returns them (`output_router_logits=True`), saved as they are; only read.

.safetensors  a tensor of floats for each layer, `router_logits.0`, `router_logits.1`, ...: [tokens, experts],
              or [requests, tokens, experts]
.npy          one array of floats, the layers stacked: [layers, tokens, experts], or [layers, requests,
              tokens, experts]
A token's experts are taken to be its `top_k` largest logits. Weights are their probabilities, the softmax
over all experts, and the whole softmax is kept as `gate_probs`.
"""

import re
from pathlib import Path

import numpy as np

from dwellmoe.cache.memory import check_memory
from dwellmoe.cache.npy_file import map_array
from dwellmoe.cache.tensor_file import map_tensors, read_header
from dwellmoe.cache.trace import DECODE, EMPTY, PREFILL, RoutingTrace
from dwellmoe.errors import UserError
from dwellmoe.log import warn_once

SUFFIXES = ()
HINTS = ("num_experts", "prompt_tokens", "top_k")
EXPECTED = "floats, the router logits [layers, tokens, experts]"
FLOATS_NPY = re.compile(rb"\x93NUMPY.{4}\{'descr': '[<>]f", re.DOTALL)
TENSOR = re.compile(r"router_logits\D?(\d+)")
BFLOAT16, FLOATS = "BF16", ("BF16", "F16", "F32", "F64")
KEPT_BYTES = 24  # of memory for each logit while a layer is read
CHOICE = (
    "the experts of a token are taken to be its largest router logits; routers that choose in groups or with "
    "a bias, "
    "as DeepSeek-V3's, may have chosen others"
)


def recognise(head: bytes) -> bool:
    return bool(FLOATS_NPY.match(head)) or (head[7:9] == b"\0{" and b'"router_logits' in head)


def read(
    path: Path, num_experts: int | None = None, prompt_tokens: int = 0, top_k: int | None = None
) -> RoutingTrace:
    """The first `prompt_tokens` tokens of each request are prefill."""
    layers = _layers(path)
    requests, tokens, experts = next(iter(layers.values())).shape
    top_k = _check(path, (requests, tokens, experts), num_experts, prompt_tokens, top_k)
    rows = requests * tokens
    check_memory((2 * len(layers) + KEPT_BYTES) * rows * experts, f"{path}: a trace of its router logits")
    chosen = np.empty((rows, len(layers), top_k), np.uint16)
    weights = np.empty(chosen.shape, np.float16)
    gate_probs = np.empty((rows, len(layers), experts), np.float16)
    for index, (layer, logits) in enumerate(layers.items()):
        logits = logits.reshape(rows, experts).astype(np.float32)
        probabilities = _softmax(path, layer, logits)
        order = np.argsort(-logits, axis=1, kind="stable")[:, :top_k]
        chosen[:, index] = order
        weights[:, index] = np.take_along_axis(probabilities, order, axis=1)
        gate_probs[:, index] = probabilities
    warn_once(f"{path}: {CHOICE}")
    decoded = np.arange(tokens) >= prompt_tokens
    return RoutingTrace(
        chosen,
        np.tile(np.where(decoded, DECODE, PREFILL).astype(np.uint8), requests),
        np.repeat(np.arange(requests, dtype=np.int32), tokens),
        experts,
        layer_ids=tuple(layers),
        source=path.name,
        weights=weights,
        gate_probs=gate_probs,
    )


def _layers(path: Path) -> dict[int, np.ndarray]:
    """Layer -> its logits [requests, tokens, experts], of which nothing is read yet. Raises UserError."""
    with open(path, "rb") as file:
        is_array = file.read(1) == b"\x93"
    found = _stacked(path) if is_array else _tensors(path)
    shapes = {logits.shape for logits in found.values()}
    if len(shapes) > 1:
        first, other = sorted(shapes)[:2]
        raise UserError(f"{path}: router logits of {list(first)} and {list(other)}: layers must be alike")
    if 0 in next(iter(shapes)):
        raise UserError(f"{path}: the trace is empty: router logits of {list(next(iter(shapes)))}")
    return found


def _stacked(path: Path) -> dict[int, np.ndarray]:
    array = map_array(path, EXPECTED)
    if array.ndim not in (3, 4):
        raise UserError(f"{path}: expected {EXPECTED}, got {array.dtype} {list(array.shape)}")
    return {layer: _with_requests(logits) for layer, logits in enumerate(array)}


def _tensors(path: Path) -> dict[int, np.ndarray]:
    header = read_header(path)[0]
    found = {}
    for name, tensor in map_tensors(path, {BFLOAT16: np.uint16})[0].items():
        layer, kind = TENSOR.search(name), header[name]["dtype"]
        if layer is None or kind not in FLOATS or tensor.ndim not in (2, 3):
            raise UserError(
                f"{path}: tensor '{name:.60}' is {kind} {list(tensor.shape)}: expected router_logits.0, "
                "router_logits.1, ... of floats [tokens, experts] or [requests, tokens, experts]"
            )
        if int(layer[1]) in found:
            raise UserError(f"{path}: layer {layer[1]} is in the file twice, the second time as '{name:.60}'")
        found[int(layer[1])] = _with_requests(_widened(tensor) if kind == BFLOAT16 else tensor)
    return dict(sorted(found.items()))


def _with_requests(logits: np.ndarray) -> np.ndarray:
    return logits if logits.ndim == 3 else logits[None]


def _widened(bits: np.ndarray) -> np.ndarray:
    """float32 of bfloat16, which is its upper half."""
    return (bits.astype(np.uint32) << 16).view(np.float32)


def _check(
    path: Path,
    shape: tuple[int, int, int],
    num_experts: int | None,
    prompt_tokens: int,
    top_k: int | None,
) -> int:
    """top_k. UserError for what does not fit the logits."""
    _, tokens, experts = shape
    if top_k is None:
        raise UserError(
            f"{path}: router logits do not state how many experts a token chooses: give --top_k; of chosen "
            "experts themselves, expected whole numbers [tokens, layers, top_k]"
        )
    if not 1 <= top_k <= experts < EMPTY:
        raise UserError(f"{path}: top_k must be 1 to the {experts} experts of the logits, got {top_k}")
    if num_experts not in (None, experts):
        raise UserError(f"{path}: num_experts is {num_experts}, but the logits are of {experts} experts")
    if not 0 <= prompt_tokens <= tokens:
        raise UserError(f"{path}: prompt_tokens must be 0 to {tokens}, got {prompt_tokens}")
    return top_k


def _softmax(path: Path, layer: int, logits: np.ndarray) -> np.ndarray:
    """float32 [tokens, experts]. UserError for a token without a choice."""
    with np.errstate(invalid="ignore"):
        shifted = np.exp(logits - logits.max(axis=1, keepdims=True))
        probabilities = shifted / shifted.sum(axis=1, keepdims=True)
    bad = ~np.isfinite(probabilities).all(axis=1)
    if bad.any():
        raise UserError(
            f"{path}: router logits of layer {layer}, row {int(bad.argmax())} are NaN or infinite"
        )
    return probabilities
