"""Knows how a user's mistake is told: one line, exit code 2. Does not know what the mistakes are."""

import errno
import os
import sys
from collections.abc import Callable

REFUSED = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EPIPE)


class UserError(ValueError):
    """A mistake of the user: says in one line what is wrong, where, the value found and the choices."""


def unknown_name(kind: str, name: str, choices) -> UserError:
    """The error for a name that is not in a registry; `choices` are the names that are."""
    return UserError(f"unknown {kind} '{name}': choose from {', '.join(sorted(choices))}")


def first_line(error: Exception) -> str:
    """The first line of a library's message, with the next where it ends in a colon; or its type where it
    says nothing.
    """
    first, *rest = str(error).strip().splitlines() or [type(error).__name__]
    return f"{first} {rest[0].strip()}" if first.endswith(":") and rest else first


def run_command(command: Callable[[], None]) -> None:
    """Runs an entry point: a UserError, a full disk or a reader that left becomes one line on stderr and exit
    code 2, Ctrl-C exit code 130.
    """
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
