"""Fingerprint of a checkpoint: a hash by which its weights are known again, whatever its files are called.

Hashed are the name, type and shape of every tensor and a sample of its bytes: six pieces of 512 bytes, or all
of a small tensor. So 30 GB of weights take seconds, and weights that were trained, merged or quantised
differ. A change that no piece meets, such as one edited row of an embedding, stays unseen.
"""

import hashlib
import os
import random
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

from dwellmoe.offload.io.shards import Shards, StoredTensor, find_shards

DIGEST_BYTES = 16
PIECE_BYTES = 512
SEEDED_PIECES = 3
"""Besides those at the beginning, in the middle and at the end; their places depend on the tensor's name."""
WHOLE_BYTES = 8192
"""A tensor up to this size is hashed whole: one read, as cheap as a piece."""


def checkpoint_fingerprint(model_name: str) -> str:
    """The fingerprint of a checkpoint folder, or of a name on the hub. Raises UserError as `find_shards`."""
    return fingerprint(find_shards(model_name))


def fingerprint(shards: Shards) -> str:
    """32 hexadecimal digits that depend on the tensors alone, not on how they are spread over files."""
    names = sorted(shards.tensors)
    with ExitStack() as stack, ThreadPoolExecutor() as readers:
        files = [stack.enter_context(open(path, "rb")).fileno() for path in shards.paths]

        def digest_of(name: str) -> bytes:
            tensor = shards.tensors[name]
            return _tensor_digest(files[tensor.shard], name, tensor)

        whole = hashlib.blake2b(digest_size=DIGEST_BYTES)
        for digest in readers.map(digest_of, names):
            whole.update(digest)
    return whole.hexdigest()


def _tensor_digest(file: int, name: str, tensor: StoredTensor) -> bytes:
    found = hashlib.blake2b(repr((name, tensor.dtype, list(tensor.shape))).encode(), digest_size=DIGEST_BYTES)
    for begin, length_bytes in _pieces(name, tensor.nbytes):
        found.update(os.pread(file, length_bytes, tensor.offset + begin))
    return found.digest()


def _pieces(name: str, nbytes: int) -> Iterator[tuple[int, int]]:
    """Beginning and length of each piece of a tensor that is read."""
    if nbytes <= WHOLE_BYTES:
        yield 0, nbytes
        return
    last, draw = nbytes - PIECE_BYTES, random.Random(name)
    for begin in (0, last // 2, last, *(draw.randrange(last) for _ in range(SEEDED_PIECES))):
        yield begin, PIECE_BYTES
