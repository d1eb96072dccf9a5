"""Where a result comes from: the command, the code and the date, to be written beside its numbers."""

import re
import shlex
import subprocess
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

_CHECKOUT = Path(__file__).resolve().parent.parent
_SECRET = r"--[\w-]*[_-]token"


def provenance() -> dict[str, str]:
    """`command`, `code` (the commit of a checkout, else the version of the package) and `date` (UTC)."""
    program = Path(sys.argv[0]).name
    return {
        "command": shlex.join([program, *_without_secrets(sys.argv[1:])]),
        "code": _commit() or _version(),
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
    }


def _without_secrets(words: Sequence[str]) -> list[str]:
    """The words of a command line, `***` in place of each token of an account: reports are passed on."""
    return [
        "***" if re.fullmatch(_SECRET, before) else re.sub(rf"^({_SECRET}=).*", r"\1***", word)
        for before, word in zip(["", *words], words, strict=False)
    ]


def _commit() -> str | None:
    """The commit that is checked out, with a note where files differ from it; None outside a checkout."""
    if not (_CHECKOUT / ".git").exists():
        return None
    try:
        commit = _git("rev-parse", "--short=12", "HEAD")
        changed = _git("status", "--porcelain", "--untracked-files=no")
    except (OSError, subprocess.SubprocessError):
        return None
    return f"commit {commit}, with changes" if changed else f"commit {commit}"


def _git(*words: str) -> str:
    done = subprocess.run(
        ["git", "-C", str(_CHECKOUT), *words], capture_output=True, text=True, check=True, timeout=20
    )
    return done.stdout.strip()


def _version() -> str:
    try:
        return f"dwellmoe {version('dwellmoe')}"
    except PackageNotFoundError:
        return "dwellmoe, not installed"
