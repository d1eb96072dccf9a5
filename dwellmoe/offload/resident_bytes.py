"""How much of a model is always in memory: everything but its routed experts."""

from collections.abc import Mapping

from dwellmoe.cache.budget import Sizes
from dwellmoe.errors import UserError
from dwellmoe.offload.io.shards import StoredTensor, find_shards
from dwellmoe.offload.skeleton import is_routed_expert

FACTORS = (0.5, 1.0, 2.0)  # bytes of a weight in memory for each one in the checkpoint
TOLERANCE = 0.2  # low-bit experts have scales beside their weights


def resident_bytes_of(model_name: str, trace: Sizes) -> int:
    """Bytes of a checkpoint's weights beside its routed experts, at the precision of the trace's experts.

    UserError where its experts cannot be those of the trace.
    """
    tensors = find_shards(model_name).tensors
    routed = {name: found for name, found in tensors.items() if is_routed_expert(name, found)}
    experts = _experts_by_layer(routed)
    if {*experts.values()} != {trace.num_experts} or len(experts) < trace.layers:
        raise _another_model(
            model_name, f"{len(experts)} layers x {max(experts.values(), default=0)} experts"
        )
    routed_bytes = sum(found.nbytes for found in routed.values())
    stored_bytes = routed_bytes / sum(experts.values())
    in_trace_bytes = sum(trace.expert_bytes) / trace.layers
    for factor in FACTORS:
        if abs(in_trace_bytes - factor * stored_bytes) <= TOLERANCE * in_trace_bytes:
            return int(factor * (sum(found.nbytes for found in tensors.values()) - routed_bytes))
    raise _another_model(model_name, f"experts of {stored_bytes:.0f} bytes")


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
