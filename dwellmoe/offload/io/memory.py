"""Host memory that direct reads, huge pages and tensors can share."""

import ctypes
import mmap

import numpy as np
import torch
from torch import Tensor

PAGE_BYTES = 4096
HUGE_PAGE_BYTES = 2 << 20
LARGE_BYTES = 4 << 20
M_MMAP_THRESHOLD = -3  # of mallopt, in glibc's malloc.h


def pages(nbytes: int) -> int:
    """Bytes rounded up to whole pages."""
    return -(-nbytes // PAGE_BYTES) * PAGE_BYTES


class HostMemory:
    """Page-aligned memory of the host: `tensor` to compute with, `bytes` to read into. The system provides a
    page when it is first written. `pinned` memory can be copied to a GPU without waiting.

    Larger memory begins at a huge page: a direct read into scattered small pages is split into small
    requests, which take up to twice as long, and matrix products with weights there are slower.
    """

    def __init__(self, nbytes: int, pinned: bool = False) -> None:
        if pinned:
            self.tensor: Tensor = torch.empty(pages(nbytes) + PAGE_BYTES, dtype=torch.uint8, pin_memory=True)
            shift = -self.tensor.data_ptr() % PAGE_BYTES
            self.tensor = self.tensor[shift : shift + pages(nbytes)]
            self.bytes: np.ndarray = self.tensor.numpy()
            return
        kind = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS  # shared memory would get no huge pages
        size = max(PAGE_BYTES, pages(nbytes))
        slack = HUGE_PAGE_BYTES if nbytes >= HUGE_PAGE_BYTES else 0
        mapped = mmap.mmap(-1, size + slack, kind)
        if slack:
            mapped.madvise(mmap.MADV_HUGEPAGE)
        found = np.frombuffer(mapped, np.uint8)
        begin = -found.ctypes.data % HUGE_PAGE_BYTES if slack else 0
        self.bytes = found[begin : begin + size]
        self.tensor = torch.from_numpy(self.bytes)


def on_huge_pages(tensor: Tensor) -> Tensor:
    """The same numbers in memory that begins at a huge page: products read them up to a third faster. Small
    tensors and those of other devices stay where they are.
    """
    if tensor.nbytes < HUGE_PAGE_BYTES or tensor.device.type != "cpu":
        return tensor
    return (
        HostMemory(tensor.nbytes).tensor[: tensor.nbytes].view(tensor.dtype).view(tensor.shape).copy_(tensor)
    )


def give_freed_memory_back() -> None:
    """From now on the memory of every freed tensor of LARGE_BYTES and more goes back to the system at once.

    glibc keeps freed blocks of up to 32 MiB otherwise: 2 GB while OLMoE-1B-7B trains. Other C libraries are
    left as they are.
    """
    if mallopt := getattr(ctypes.CDLL(None), "mallopt", None):
        mallopt(M_MMAP_THRESHOLD, LARGE_BYTES)


def give_back_what_is_free() -> None:
    """Gives memory that glibc keeps of tensors freed so far back to the system; other C libraries are left as
    they are.
    """
    if malloc_trim := getattr(ctypes.CDLL(None), "malloc_trim", None):
        malloc_trim(0)
