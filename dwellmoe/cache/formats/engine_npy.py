"""Arrays of chosen experts as serving engines return them, `routed_experts` of vLLM among them: whole numbers
[tokens, layers, top_k] in a .npy file. `returned_experts.py` says what marks an empty slot.
"""

from pathlib import Path

import numpy as np

from dwellmoe.cache.formats import check_num_experts
from dwellmoe.cache.memory import check_memory
from dwellmoe.cache.npy_file import map_array
from dwellmoe.cache.returned_experts import ReturnedExperts, signed_ids, trace_of
from dwellmoe.cache.trace import RoutingTrace
from dwellmoe.errors import UserError
from dwellmoe.files import replacing

SUFFIXES = (".npy",)
HINTS = ("num_experts", "prompt_tokens")
EXPECTED = "whole numbers [tokens, layers, top_k]"


def recognise(head: bytes) -> bool:
    return head.startswith(b"\x93NUMPY") and not head[10:].startswith((b"{'descr': '<f", b"{'descr': '>f"))


def read(path: Path, num_experts: int | None = None, prompt_tokens: int = 0) -> RoutingTrace:
    """One request; its first `prompt_tokens` rows are prefill."""
    num_experts = check_num_experts(path, num_experts)
    chosen = map_array(path, EXPECTED)
    if chosen.dtype.kind not in "iu" or chosen.ndim != 3:
        raise UserError(f"{path}: expected {EXPECTED}, got {chosen.dtype} {list(chosen.shape)}")
    check_memory(4 * chosen.size, f"{path}: a trace of {list(chosen.shape)}")  # twice, in uint16
    if not 0 <= prompt_tokens <= len(chosen):
        raise UserError(f"{path}: prompt_tokens must be 0 to {len(chosen)}, got {prompt_tokens}")
    return trace_of(path, [ReturnedExperts(chosen, prompt_tokens, str(path))], num_experts)


def write(trace: RoutingTrace, path: str | Path) -> None:
    """Writes the chosen experts of all rows; phases, requests and weights have no place in the format."""
    chosen = signed_ids(trace, path)
    with replacing(path) as file:
        np.save(file, chosen, allow_pickle=False)
