"""How much of a model is always in memory: everything but its routed experts."""

from dwellmoe.cache.budget import Sizes
from dwellmoe.errors import UserError
from dwellmoe.offload.io.shards import find_shards
from dwellmoe.offload.skeleton import is_routed_expert

FACTORS = (0.5, 1.0, 2.0)  # bytes of a weight in memory for each one in the checkpoint
TOLERANCE = 0.2  # low-bit experts have scales beside their weights


def resident_bytes_of(model_name: str, trace: Sizes) -> int:
    """Bytes of a checkpoint's weights beside its routed experts, at the precision of the trace's experts.

    UserError where its experts cannot be those of the trace.
    """
    tensors = find_shards(model_name).tensors
    expert_bytes = sum(found.nbytes for name, found in tensors.items() if is_routed_expert(name, found))
    in_trace = sum(trace.expert_bytes) * trace.num_experts
    fitting = (each for each in FACTORS if abs(in_trace - each * expert_bytes) <= TOLERANCE * in_trace)
    factor = next(fitting, 0.0)
    if not expert_bytes or not factor:
        raise UserError(
            f"checkpoint '{model_name}': its routed experts take {expert_bytes / 1e9:.3f} GB, those of the "
            f"trace {in_trace / 1e9:.3f} GB: not the same model; give --resident"
        )
    return int(factor * (sum(found.nbytes for found in tensors.values()) - expert_bytes))
