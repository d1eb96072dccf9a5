"""A user's mistake, `UserError`, and how it ends a command: one line on standard error and exit code 2."""

import difflib
import errno
import os
import re
import signal
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import NoReturn

from dwellmoe.interrupt import INTERRUPTED, end_interrupted

REFUSED = {
    *(errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO),  # a full disk, a quota, a limit, a broken disk
    *(errno.EROFS, errno.EACCES, errno.EPERM, errno.ETXTBSY, errno.EBUSY),  # not allowed
    *(errno.EISDIR, errno.ENOTDIR, errno.EEXIST, errno.ENOTEMPTY, errno.ENAMETOOLONG, errno.ELOOP),  # paths
    *(
        errno.EMFILE,
        errno.ENFILE,
        errno.ENOMEM,
        errno.EAGAIN,
        errno.EADDRINUSE,
        errno.EADDRNOTAVAIL,
    ),  # used up
    *(errno.ENXIO, errno.ENODEV, errno.ESTALE, errno.EXDEV, errno.EPIPE),  # devices, and readers that left
}
"""Errors of the system that are the user's to mend. A file that does not exist is one where it has a path."""
FAULT = 2
READER_LEFT = 128 + signal.SIGPIPE
"""Exit codes: as shells have them for a process that a signal ended."""


class UserError(ValueError):
    """A mistake of the user. The message says in one line what is wrong, where, the value and the choices."""


def unknown_name(
    kind: str, name: str, choices: Iterable[str], origins: Mapping[str, str] | None = None
) -> UserError:
    """The error for a name that is none of the choices; it names the nearest, and where some come from."""
    choices, origins = sorted(choices), origins or {}
    near = difflib.get_close_matches(name, choices, n=1)
    hint = f"did you mean '{near[0]}'? " if near else ""
    listed = (f"{known} ({origins[known]})" if known in origins else known for known in choices)
    return UserError(f"unknown {kind} '{name}': {hint}choose from {', '.join(listed)}")


def first_line(error: BaseException) -> str:
    """The first line of a library's message, with the next if it ends in a colon; the type if it is empty."""
    first, *rest = str(error).strip().splitlines() or [type(error).__name__]
    return f"{first} {rest[0].strip()}" if first.endswith(":") and rest else first


@contextmanager
def needs(extra: str) -> Iterator[None]:
    """Code that needs the packages of an extra: UserError names the extra where one is not installed."""
    try:
        yield
    except ModuleNotFoundError as error:
        if (advice := missing_package(error, extra)) is None:
            raise
        raise UserError(advice) from error


def missing_package(error: ModuleNotFoundError, extra: str) -> str | None:
    """How to install what an import did not find; None for a module of this package, which is our fault."""
    package = (error.name or "").partition(".")[0]
    if package in ("", "dwellmoe"):
        return None
    return f'package {package} is not installed: pip install "dwellmoe[{extra}]"'


def run_command(command: Callable[[], object], nothing_to_clean: bool = False) -> None:
    """Runs an entry point. A UserError, and what the system refuses, end in one line and exit code 2.

    A reader of the output that left, as `| head` does, ends it quietly. An interrupt ends a command with
    `nothing_to_clean` at once; in any other one it is an exception, so that files are closed and removed.
    """
    if signal.getsignal(signal.SIGINT) is end_interrupted and not nothing_to_clean:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        try:
            command()
        finally:
            sys.stdout.flush()  # here, where a reader that left is noticed, not while Python shuts down
    except KeyboardInterrupt:
        _end("interrupted", INTERRUPTED)
    except SystemExit as leaving:
        if isinstance(leaving.__context__, BrokenPipeError):  # which rich turns into an exit
            _end("", READER_LEFT)
        raise
    except UserError as error:
        _end(f"error: {error}", FAULT)
    except BrokenPipeError:
        _end("", READER_LEFT)
    except Exception as error:
        if (refused := refusal(error)) is None:
            raise
        _end(f"error: {refused}", FAULT)


def _end(words: str, code: int) -> NoReturn:
    """Ends the process with a line on standard error; nothing is written to readers that left."""
    with suppress(OSError):
        if words:
            print(words, file=sys.stderr, flush=True)
    if code == READER_LEFT:  # else Python tries once more to write what is left, and complains
        for stream in (sys.stdout, sys.stderr):
            with suppress(OSError, ValueError):
                os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
    sys.exit(code)


def port_in_use(port: str) -> str:
    """What to do about a port at which another process listens."""
    return f"port {port} is in use: choose another, as with --master_port"


def refusal(error: BaseException) -> str | None:
    """What the system refused, in one line with the path, if that is what an error is about; else None.

    Libraries in Rust and C++ wrap such errors in others, which name the number or the words in their text.
    """
    if isinstance(error, OSError) and error.errno is not None:
        known = error.errno in REFUSED or (error.errno == errno.ENOENT and error.filename)
        return f"{error.filename or 'the system refused'}: {error.strerror}" if known else None
    text = str(error)
    if re.search(r"gloo.*(closed|reset) by peer|ncclRemoteError", text, re.DOTALL):
        return "another rank ended before this one: what was wrong is in its own message"
    if found := re.search(r"port: (\d+).*EADDRINUSE", text, re.DOTALL):
        return port_in_use(found[1])
    if isinstance(error, MemoryError) or re.search("can't allocate memory|out of memory", text):
        return f"not enough memory: {first_line(error)}"
    if found := re.search(r"os error (\d+)|Os { code: (\d+)", text):
        number = int(found[1] or found[2])
        return f"the system refused: {os.strerror(number)}" if number in REFUSED else None
    return None
