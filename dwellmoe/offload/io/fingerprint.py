"""Fingerprint of a checkpoint: a hash by which its model is known again, whatever its files are called.

Hashed are the name, type and shape of every tensor and its bytes: all of them up to a gigabyte of weights, of
larger checkpoints sixteen pieces of 512 bytes of each tensor, or all of a small one. So 30 GB take seconds,
and weights that were trained, merged or quantised differ. In a large checkpoint a change that no piece meets,
such as one edited row of an embedding, stays unseen. The configuration counts too: by other numbers in it
(experts a token, rotary base) the same weights are another model.
"""

import functools
import hashlib
import json
import os
import random
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from dwellmoe.offload.io.packed_index import packed_index, source_config
from dwellmoe.offload.io.shards import Shards, StoredTensor, chunks_of, find_shards

DIGEST_BYTES = 16
PIECE_BYTES = 512
SEEDED_PIECES = 13
"""Besides those at the beginning, in the middle and at the end; their places depend on the tensor's name."""
WHOLE_BYTES = 8192
"""A tensor up to this size is hashed whole: one read, as cheap as a piece."""
SMALL_CHECKPOINT_BYTES = 1 << 30
NO_ARITHMETIC = (
    "_name_or_path",
    "transformers_version",
    "architectures",
    "use_cache",
    "dtype",
    "torch_dtype",
)
"""Entries of a configuration that change no result; the type of the weights is theirs already."""


def checkpoint_fingerprint(model_name: str) -> str:
    """The fingerprint of a checkpoint folder, or of a name on the hub: weights and configuration. That of a
    packed model is that of the checkpoint that was packed.

    Raises UserError as `find_shards`.
    """
    configuration = _configuration(find_shards(model_name).paths[0].parent / "config.json")
    both = weights_fingerprint(model_name) + configuration
    return hashlib.blake2b(both.encode(), digest_size=DIGEST_BYTES).hexdigest()


def weights_fingerprint(model_name: str) -> str:
    """The same of the weights alone."""
    stats = [path.stat() for path in find_shards(model_name).paths]
    return _weights(model_name, tuple((stat.st_size, stat.st_mtime_ns) for stat in stats))


@functools.cache
def _weights(model_name: str, _files: tuple) -> str:
    """The fingerprint of the weights, which are read once in a process unless a file changes."""
    found, packed = fingerprint(find_shards(model_name)), packed_index(model_name)
    return packed.source if packed and packed.weights == found else found


def _configuration(path: Path) -> str:
    """What of a configuration decides results; empty where there is none that can be read."""
    try:
        table = source_config(json.loads(path.read_text(encoding="utf-8")))
        return json.dumps(_arithmetic(table), sort_keys=True)
    except (OSError, ValueError, RecursionError):
        return ""


def _arithmetic(value: Any) -> Any:
    if not isinstance(value, dict):
        return value
    return {name: _arithmetic(each) for name, each in value.items() if name not in NO_ARITHMETIC}


def fingerprint(shards: Shards) -> str:
    """32 hexadecimal digits that depend on the tensors alone, not on how they are spread over files."""
    names = sorted(shards.tensors)
    is_small = sum(tensor.nbytes for tensor in shards.tensors.values()) <= SMALL_CHECKPOINT_BYTES
    with ExitStack() as stack, ThreadPoolExecutor() as readers:
        files = [stack.enter_context(open(path, "rb")).fileno() for path in shards.paths]

        def digest_of(name: str) -> bytes:
            tensor = shards.tensors[name]
            if is_small:
                return _digest(name, tensor, chunks_of(shards.paths[tensor.shard], tensor))
            return _digest(name, tensor, _pieces_of(files[tensor.shard], name, tensor))

        whole = hashlib.blake2b(digest_size=DIGEST_BYTES)
        for digest in readers.map(digest_of, names):
            whole.update(digest)
    return whole.hexdigest()


def _digest(name: str, tensor: StoredTensor, content: Iterable[bytes]) -> bytes:
    found = hashlib.blake2b(repr((name, tensor.dtype, list(tensor.shape))).encode(), digest_size=DIGEST_BYTES)
    for piece in content:
        found.update(piece)
    return found.digest()


def _pieces_of(file: int, name: str, tensor: StoredTensor) -> Iterator[bytes]:
    for begin, length_bytes in _pieces(name, tensor.nbytes):
        yield os.pread(file, length_bytes, tensor.offset + begin)


def _pieces(name: str, nbytes: int) -> Iterator[tuple[int, int]]:
    """Beginning and length of each piece of a tensor that is read."""
    if nbytes <= WHOLE_BYTES:
        yield 0, nbytes
        return
    last, draw = nbytes - PIECE_BYTES, random.Random(name)
    for begin in (0, last // 2, last, *(draw.randrange(last) for _ in range(SEEDED_PIECES))):
        yield begin, PIECE_BYTES
