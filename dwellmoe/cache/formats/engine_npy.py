"""Arrays of chosen experts as serving engines return them: int16 [tokens, layers, top_k] in a .npy file."""

from pathlib import Path

import numpy as np

from dwellmoe.cache.trace import DECODE, EMPTY, PREFILL, RoutingTrace
from dwellmoe.errors import UserError
from dwellmoe.files import replacing

SUFFIXES = (".npy",)
HINTS = ("num_experts", "prompt_tokens")
ABSENT = -1


def recognise(head: bytes) -> bool:
    return head.startswith(b"\x93NUMPY")


def read(path: Path, num_experts: int | None = None, prompt_tokens: int = 0) -> RoutingTrace:
    """One request; its first `prompt_tokens` rows are prefill. -1 is an empty slot."""
    if num_experts is None:
        raise UserError(f"{path}: an array does not state the experts a layer: give --num_experts")
    try:
        chosen = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError, OSError) as error:
        raise UserError(f"{path}: not a whole .npy file: {error}") from None
    if chosen.dtype not in (np.int16, np.int32, np.uint16) or chosen.ndim != 3:
        raise UserError(
            f"{path}: expected int16 [tokens, layers, top_k], got {chosen.dtype} {list(chosen.shape)}"
        )
    if chosen.size and (chosen.min() < ABSENT or chosen.max() > EMPTY):
        raise UserError(f"{path}: ids must be -1 (empty) or 0 to {num_experts - 1}")
    if not 0 <= prompt_tokens <= len(chosen):
        raise UserError(f"{path}: prompt_tokens must be 0 to {len(chosen)}, got {prompt_tokens}")
    phase = np.full(len(chosen), DECODE, np.uint8)
    phase[:prompt_tokens] = PREFILL
    experts = np.where(chosen == ABSENT, EMPTY, chosen).astype(np.uint16)
    try:
        return RoutingTrace(experts, phase, np.zeros(len(chosen), np.int32), num_experts, source=path.name)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None


def write(trace: RoutingTrace, path: str | Path) -> None:
    """Writes the chosen experts of all rows; phases, requests and weights have no place in the format."""
    if trace.num_experts > np.iinfo(np.int16).max:
        raise UserError(f"{path}: {trace.num_experts} experts a layer do not fit into int16")
    chosen = np.where(trace.experts == EMPTY, ABSENT, trace.experts.astype(np.int32)).astype(np.int16)
    with replacing(path) as file:
        np.save(file, chosen, allow_pickle=False)
