"""Memory for the one matrix that is being multiplied, used again for the next: fresh memory of this size
costs as much time as filling it.
"""

import math
import threading
from collections.abc import Sequence

import torch
from torch import Tensor

KEPT_BYTES = 64 << 20
"""A larger matrix (an output layer's) gets memory of its own."""


class _Buffer(threading.local):
    bytes = torch.empty(0, dtype=torch.uint8)


_buffer = _Buffer()


def scratch(shape: Sequence[int], *, dtype: torch.dtype, device: torch.device | None = None) -> Tensor:
    """Memory for a matrix, until the next call in the same thread."""
    nbytes = math.prod(shape) * dtype.itemsize
    if nbytes > KEPT_BYTES or (device is not None and device.type != "cpu"):
        return torch.empty(shape, dtype=dtype, device=device)
    if len(_buffer.bytes) < nbytes:
        with torch.inference_mode(False):  # memory made within that mode cannot be written outside of it
            _buffer.bytes = torch.empty(nbytes, dtype=torch.uint8)
    return _buffer.bytes[:nbytes].view(dtype).view(*shape)
