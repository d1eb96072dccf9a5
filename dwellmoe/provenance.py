"""Where a result comes from: the command, the code and the date, to be written beside its numbers."""

import shlex
import subprocess
import sys
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

_CHECKOUT = Path(__file__).resolve().parent.parent


def provenance() -> dict[str, str]:
    """`command`, `code` (the commit of a checkout, else the version of the package) and `date` (UTC)."""
    program = Path(sys.argv[0]).name
    return {
        "command": shlex.join([program, *sys.argv[1:]]),
        "code": _commit() or _version(),
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
    }


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
