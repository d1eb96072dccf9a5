"""How much of a model is always in memory: everything but its routed experts."""

from collections.abc import Mapping

from dwellmoe.cache.budget import Sizes
from dwellmoe.errors import UserError
from dwellmoe.offload.io.shards import StoredTensor, find_shards
from dwellmoe.offload.published_low_bits import FP8_TYPE, SCALES
from dwellmoe.offload.skeleton import is_routed_expert

TOLERANCE = 0.2  # low-bit experts have scales beside their weights
FACTORS = ((0.5, 0.5), (1.0, 1.0), (2.0, 2.0))
"""Bytes in memory for each one in the checkpoint: of an expert, and of all else beside it."""
LOW_BITS_AS_STORED = (1.0, 1.0)
FP8_AS_16_BITS, MXFP4_AS_16_BITS = 2.0, 64 / 17  # 32 numbers and their scale take 17 bytes in MXFP4


def resident_bytes_of(model_name: str, trace: Sizes) -> int:
    """Bytes of a checkpoint's weights beside its routed experts, at the precision of the trace's experts, or
    in 16 bits where those are in low bits.

    UserError where its experts cannot be those of the trace.
    """
    tensors = find_shards(model_name).tensors
    routed = {name: found for name, found in tensors.items() if is_routed_expert(name, found)}
    experts = _experts_by_layer(routed)
    if {*experts.values()} != {trace.num_experts} or len(experts) < trace.layers:
        raise _another_model(
            model_name, f"{len(experts)} layers x {max(experts.values(), default=0)} experts"
        )
    stored_bytes = sum(found.nbytes for found in routed.values()) / sum(experts.values())
    in_trace_bytes = sum(trace.expert_bytes) / trace.layers
    rest_bytes = sum(_in_memory(name, found) for name, found in tensors.items() if name not in routed)
    for of_expert, of_rest in _factors(routed):
        if abs(in_trace_bytes - of_expert * stored_bytes) <= TOLERANCE * in_trace_bytes:
            return int(of_rest * rest_bytes)
    raise _another_model(model_name, f"experts of {stored_bytes:.0f} bytes")


def _in_memory(name: str, tensor: StoredTensor) -> int:
    """FP8 is brought into 16 bits when it is loaded, beside the experts, and its scales are let go."""
    if tensor.dtype == FP8_TYPE:
        return 2 * tensor.nbytes
    return 0 if name.endswith(SCALES) else tensor.nbytes


def _factors(routed: Mapping[str, StoredTensor]) -> tuple[tuple[float, float], ...]:
    """For a trace of a model that holds the experts as they are stored, in 16 bits, or in 32."""
    types = {found.dtype for found in routed.values()}
    if FP8_TYPE in types:
        in_16_bits = FP8_AS_16_BITS
    elif any(name.endswith("_blocks") for name in routed):
        in_16_bits = MXFP4_AS_16_BITS
    else:
        return (LOW_BITS_AS_STORED,) if "U8" in types else FACTORS
    return LOW_BITS_AS_STORED, (in_16_bits, 1.0), (2 * in_16_bits, 2.0)


def _experts_by_layer(routed: Mapping[str, StoredTensor]) -> dict[str, int]:
    """Block of experts -> how many it has; they are stored one by one or as one tensor."""
    numbers: dict[str, int] = {}
    for name, tensor in routed.items():
        block, _, rest = name.partition(".experts.")
        number = rest.partition(".")[0]
        count = int(number) + 1 if number.isdigit() else tensor.shape[0]
        numbers[block] = max(count, numbers.get(block, 0))
    return numbers


def _another_model(model_name: str, found: str) -> UserError:
    return UserError(
        f"checkpoint '{model_name}' has {found}: not the same model as the trace's; give --resident BYTES"
    )
