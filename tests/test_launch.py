"""What a launched rank does for itself."""

import os
import signal
import socket
import subprocess
import sys
import time
from contextlib import nullcontext

import pytest

from config import DEFAULT_DEEPSPEED, with_default_deepspeed
from dwellmoe.errors import UserError
from dwellmoe.launch import STALE_SECONDS, check_port
from tests.conftest import ROOT

RANK = (
    "import time; from dwellmoe import launch; launch.end_with_launcher(); "
    "print('ready', flush=True); time.sleep(60)"
)
LAUNCHER = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {RANK!r}])"
DEEPSPEED = (
    "import subprocess, sys; "
    f"subprocess.run([sys.executable, '-c', {LAUNCHER!r}, '-m', 'deepspeed.launcher.launch'])"
)
"""The deepspeed command, which starts a launcher, which starts the ranks."""


def test_only_the_deepspeed_launcher_gets_the_default_file():
    assert with_default_deepspeed(["--batch_size", "2"]) == ["--batch_size", "2"]
    launched = with_default_deepspeed(["--local_rank=1", "--batch_size", "2"])
    assert launched[-2:] == ["--deepspeed", str(DEFAULT_DEEPSPEED)]
    named = ["--local_rank=1", "--deepspeed=mine.json"]
    assert with_default_deepspeed(named) == named


def test_a_lock_of_a_killed_build_is_removed_and_one_in_use_is_kept(tmp_path, monkeypatch, capsys):
    """Torch keeps the lock open while it builds; of another machine's build only fresh files show."""
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))
    left, held, fresh = (tmp_path / name / "lock" for name in "abc")
    then = time.time() - STALE_SECONDS - 1
    for lock in (left, held, fresh):
        lock.parent.mkdir()
        lock.touch()
        if lock != fresh:
            os.utime(lock, (then, then))
    with held.open():
        with_default_deepspeed(["--local_rank=0"])
    assert not left.exists() and held.exists() and fresh.exists()
    assert "waiting for another process that builds" in capsys.readouterr().err


LAUNCHERS = {
    "launcher": ([LAUNCHER], {"LOCAL_RANK": "0"}),
    "deepspeed": ([DEEPSPEED], {"LOCAL_RANK": "0"}),
    "accelerate": ([LAUNCHER, "accelerate", "launch"], {}),
}
"""What is started, and what it tells the rank: `accelerate launch` tells a single process nothing."""


@pytest.mark.parametrize("name", LAUNCHERS)
def test_a_rank_ends_with_its_launcher(name):
    """The rank's output closes when the rank ends."""
    words, told = LAUNCHERS[name]
    command = [sys.executable, "-c", *words]
    environment = os.environ | told
    launcher = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True)
    with launcher:
        assert launcher.stdout is not None and launcher.stdout.readline() == "ready\n"
        os.kill(launcher.pid, signal.SIGKILL)
        began = time.monotonic()
        assert launcher.stdout.read() == ""
    assert time.monotonic() - began < 30, "the rank went on without its launcher"


@pytest.mark.parametrize(
    ("told", "is_refused"),
    [
        ({}, True),
        ({"RANK": "1"}, False),
        ({"WORLD_SIZE": "1"}, False),
        ({"TORCHELASTIC_USE_AGENT_STORE": "True"}, False),
    ],
)
def test_a_port_in_use_is_found_before_torch_is_imported(told, is_refused, monkeypatch):
    with socket.socket() as other:
        other.bind(("", 0))
        other.listen()
        port = str(other.getsockname()[1])
        for name, value in ({"RANK": "0", "WORLD_SIZE": "2", "MASTER_PORT": port} | told).items():
            monkeypatch.setenv(name, value)
        with pytest.raises(UserError, match=f"port {port} is in use") if is_refused else nullcontext():
            check_port()
    check_port()
