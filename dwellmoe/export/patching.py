"""Copies files by ranges of bytes, shared with the original where the file system can, and patches them."""

import errno
import os
from collections.abc import Mapping
from typing import BinaryIO

BLOCK_BYTES = 4096
"""File systems share whole blocks: ranges whose places agree modulo this can be shared."""
CHUNK_BYTES = 1 << 24
MOST_AT_ONCE_BYTES = 1 << 30
CANNOT_SHARE = {errno.EXDEV, errno.EINVAL, errno.EOPNOTSUPP, errno.ENOSYS, errno.EBADF, errno.EPERM}


def copy_range(source: BinaryIO, begin: int, end: int, target: BinaryIO) -> None:
    """Appends bytes `begin`..`end` of a file to another one."""
    target.flush()
    to_block = -begin % BLOCK_BYTES
    if to_block < end - begin:
        _copy_bytes(source, begin, begin + to_block, target)
        begin = _copy_in_kernel(source, begin + to_block, end, target)
    _copy_bytes(source, begin, end, target)


def _copy_in_kernel(source: BinaryIO, begin: int, end: int, target: BinaryIO) -> int:
    """Copies as far as the kernel does it; gives where it stopped."""
    target.flush()
    while begin < end:
        try:
            done = os.copy_file_range(
                source.fileno(), target.fileno(), min(end - begin, MOST_AT_ONCE_BYTES), begin
            )
        except OSError as error:
            if error.errno not in CANNOT_SHARE:
                raise
            return begin
        if not done:
            return begin
        begin += done
    return begin


def _copy_bytes(source: BinaryIO, begin: int, end: int, target: BinaryIO) -> None:
    source.seek(begin)
    while begin < end:
        piece = source.read(min(CHUNK_BYTES, end - begin))
        if not piece:
            raise OSError(errno.EIO, "became shorter while it was read", getattr(source, "name", None))
        target.write(piece)
        begin += len(piece)
    target.flush()


def patch(file: BinaryIO, ranges: Mapping[int, bytes]) -> None:
    """Overwrites bytes: place -> what to write there. On disk when this returns."""
    file.flush()
    for begin, content in ranges.items():
        left = memoryview(content)
        while left:
            done = os.pwrite(file.fileno(), left, begin)
            begin, left = begin + done, left[done:]
    os.fsync(file.fileno())
