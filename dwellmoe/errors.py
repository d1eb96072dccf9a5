"""A user's mistake, `UserError`, and how it ends a command: one line on standard error and exit code 2."""

import difflib
import errno
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager

REFUSED = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EPIPE)
"""Errors of the system that are the user's to mend: a full disk, a quota, a limit, a reader that left."""


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


def first_line(error: Exception) -> str:
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


def run_command(command: Callable[[], None]) -> None:
    """Runs an entry point. A UserError and the errors in `REFUSED` end in one line and exit code 2."""
    try:
        command()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except OSError as error:
        if error.errno not in REFUSED:
            raise
        if error.errno == errno.EPIPE:  # else Python tries once more to write what is left, and complains
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        print(f"error: {error.filename or 'writing'}: {error.strerror}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)
