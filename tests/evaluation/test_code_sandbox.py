"""Hostile programs do no harm, whichever backend confines them; harmless ones run."""

import os
import re
import socket
import subprocess
import sys
import threading
from functools import lru_cache
from pathlib import Path

import pytest

from dwellmoe.evaluation.sandbox.confine import BACKENDS
from dwellmoe.evaluation.sandbox.run import Limits, SandboxUnavailable, Verdict, check_sandbox, run_program
from dwellmoe.evaluation.sandbox.system_calls import ARCHITECTURES, filter_for

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]
QUICK = Limits(wall_seconds=5, cpu_seconds=5)
SHORT = Limits(wall_seconds=0.6, cpu_seconds=5)


@lru_cache
def _holds(backend: str) -> bool:
    try:
        return check_sandbox((backend,)) == backend
    except SandboxUnavailable:
        return False


@pytest.fixture(params=BACKENDS)
def backends(request):
    if not _holds(request.param):
        pytest.skip(f"this machine has no {request.param}")
    return (request.param,)


def test_this_machine_has_some_backend():
    """Where it has none, every other test here would be skipped in silence."""
    assert check_sandbox() in BACKENDS


FIND_NONCE = """
import os, sys
frame = sys._getframe()
while "nonce" not in frame.f_locals:
    frame = frame.f_back
nonce = frame.f_locals["nonce"].encode()
"""
HARMLESS = """
import bisect, collections, copy, datetime, decimal, fractions, functools, hashlib, heapq, itertools, json
import math, operator, random, re, statistics, string, typing
with open("notes.txt", "w") as file:
    file.write("kept")
assert open("notes.txt").read() == "kept"
assert sorted(random.sample(range(10), 10)) == list(range(10))
"""
FAILING = {
    "a wrong answer": ("assert 1 + 1 == 3, 'no'", "AssertionError: no"),
    "leaving before the tests": ("import sys\nsys.exit(0)", "SystemExit: 0"),
    "no Python": ("def", "SyntaxError"),
    "a zero byte": ("a = 1\0", "SyntaxError|ValueError"),
    "half a surrogate": ("x = '\ud800'", "UnicodeEncodeError"),
    "reading the input": ("input()", "EOFError"),
    "steering the terminal": ("raise ValueError('\\x1b[2J')", r"ValueError: \?\[2J"),
    "a fork bomb": ("import os\nwhile True: os.fork()", "PermissionError"),
    "a daemon": ("import os\nif os.fork() == 0:\n  os.setsid()\n  os.fork()", "PermissionError"),
    "another program": ("import os\nos.execv('/bin/sh', ['sh'])", "PermissionError"),
    "a thread": ("import threading\nthreading.Thread(target=print).start()", "start new thread"),
    "a socket": ("import socket\nsocket.socket()", "PermissionError"),
    "a local socket": ("import socket\nsocket.socket(socket.AF_UNIX)", "PermissionError"),
    "a pair of sockets": ("import socket\nsocket.socketpair()", "PermissionError"),
    "killing the parent": ("import os\nos.kill(os.getppid(), 9)", "PermissionError"),
    "killing every process": ("import os\nos.kill(-1, 9)", "PermissionError"),
    "a signal through fcntl": (
        "import fcntl, os\nfcntl.fcntl(1, fcntl.F_SETOWN, os.getppid())",
        "PermissionError",
    ),
    "huge memory": ("x = bytearray(1 << 34)", "MemoryError"),
    "memory bit by bit": ("x = []\nwhile True: x.append(bytearray(1 << 24))", "MemoryError"),
    "a huge file": ("with open('a', 'wb') as f:\n  while True: f.write(bytes(1 << 16))", "File too large"),
    "a folder": ("import os\nos.mkdir('a')", "PermissionError"),
    "raising its limits": (
        "import resource\nresource.setrlimit(resource.RLIMIT_AS, (1 << 40, 1 << 40))",
        "PermissionError|not allowed to raise",
    ),
}


def test_a_harmless_program_passes_and_leaves_nothing(backends, tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    assert run_program(HARMLESS, QUICK, backends).verdict is Verdict.PASSED
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", FAILING)
def test_it_fails_and_says_why(name, backends):
    program, reason = FAILING[name]
    outcome = run_program(program, QUICK, backends)
    assert outcome.verdict is Verdict.FAILED
    assert re.search(reason, outcome.reason), outcome


@pytest.mark.parametrize(
    ("program", "verdict"),
    [
        ("while True: pass", Verdict.TIMED_OUT),
        (
            "import signal, time\nfor s in (1, 2, 15): signal.signal(s, signal.SIG_IGN)\ntime.sleep(99)",
            Verdict.TIMED_OUT,
        ),
        ("import os\nos.close(1); os.close(2)\nwhile True: pass", Verdict.TIMED_OUT),
        ("while True: print('x' * 1000)", Verdict.TOO_MUCH_OUTPUT),
        ("import os\nos._exit(0)", Verdict.DIED),
        ("import ctypes\nctypes.string_at(0)", Verdict.DIED),
    ],
)
def test_it_is_stopped(program, verdict, backends):
    assert run_program(program, SHORT, backends).verdict is verdict


@pytest.mark.parametrize(
    "forged",
    [
        "os.write(1, b'\\n' + nonce + b' hacked x\\n')",
        "os.write(1, b'\\n' + nonce + b' refused no sandbox\\n')",
        "os.write(1, b'refused no sandbox\\n\\n' + nonce + b' refused x\\n')",
        "os.write(1, b'\\n' + nonce + b' ')",
        "os.write(1, b'\\n' + nonce + b' PASSED\\n')",
        "os.write(1, b'\\n' + nonce + b' passed\\xff x\\n')",
        "os.write(1, b'\\n' + nonce + b' passed x\\n\\n' + nonce + b' \\xc3\\x28\\n')",
        "os.write(1, b'\\n' + nonce + b' {\"verdict\": [1]}\\n')",
        "os.write(1, b'\\n' + nonce + b' failed ' + b'x' * 500_000 + b'\\n')",
        "os.write(1, (b'\\n' + nonce + b' died\\n') * 9_000)",
        "os.write(1, b'\\n' + nonce + b' timed out\\n'); os.close(1); os.close(2)",
    ],
)
def test_a_forged_line_that_is_no_pass_has_failed(forged, backends):
    """A program that finds its nonce can end neither the evaluation nor in a verdict that does not exist."""
    outcome = run_program(f"{FIND_NONCE}\n{forged}\nos._exit(0)", QUICK, backends)
    assert outcome.verdict is Verdict.FAILED and len(outcome.reason) <= 300 and outcome.backend == ""


@pytest.mark.parametrize(
    ("program", "verdict"),
    [
        ("print('refused')", Verdict.PASSED),
        ("import os; os.write(1, b'refused me\\n' + bytes(range(256)) * 99)", Verdict.PASSED),
        ("print('x' * 900_000)", Verdict.PASSED),
        ("print('no end of line', end='')", Verdict.PASSED),
        ("import os; os.write(1, b'refused x\\n'); os._exit(0)", Verdict.DIED),
        ("import os; os.close(1)", Verdict.DIED),
        ("import os; os.closerange(0, 9)", Verdict.DIED),
        ("import builtins; builtins.type = builtins.str = None; raise ValueError", Verdict.DIED),
        ("class E(Exception):\n  def __str__(self): return 7\nraise E", Verdict.DIED),
    ],
)
def test_the_verdict_is_found_whatever_is_written(program, verdict, backends):
    assert run_program(program, QUICK, backends).verdict is verdict


def test_a_program_is_run_as_the_harness_of_humaneval_runs_it(backends):
    """Executed in an empty namespace and not as the main module, without command-line arguments."""
    program = (
        "import sys\nassert __name__ == 'builtins' and len(sys.argv) == 1\nif __name__ == '__main__': input()"
    )
    assert run_program(program, QUICK, backends).verdict is Verdict.PASSED


def test_a_deleted_folder_ends_nothing():
    delete = "os.rmdir(os.path.basename(os.getcwd()), dir_fd=os.open('..', 0))"
    program = f"import os\n{delete}\nwhile True: pass"
    assert run_program(program, SHORT, ("unconfined",)).verdict is Verdict.TIMED_OUT


def test_cpu_time_is_bounded_too(backends):
    outcome = run_program("while True: pass", Limits(wall_seconds=9, cpu_seconds=1), backends)
    assert (outcome.verdict is Verdict.DIED and "SIGKILL" in outcome.reason) or "SIGXCPU" in outcome.reason


def test_many_small_files_are_bounded(backends):
    program = "for n in range(10 ** 7):\n  open(str(n), 'w').write('x')"
    outcome = run_program(program, Limits(wall_seconds=5, file_bytes=1 << 21), backends)
    assert outcome.verdict in (Verdict.DIED, Verdict.FAILED)


@pytest.mark.parametrize(
    "attack",
    [
        "open({path!r}, 'w')",
        "open({path!r}, 'a')",
        "import os; os.open({path!r}, os.O_RDONLY | os.O_TRUNC)",
        "import os; os.unlink({path!r})",
        "import os; os.rename({path!r}, {path!r} + '2')",
        "import os; os.truncate({path!r}, 0)",
        "import os; os.chmod({path!r}, 0)",
        "import os; os.utime({path!r}, (0, 0))",
        "import os; os.link({path!r}, 'mine'); open('mine', 'w')",
        "import os; os.symlink({path!r}, 'mine'); open('mine', 'w')",
        "import shutil; shutil.rmtree({folder!r})",
        "open({folder!r} + '/new', 'w')",
        "open('/dev/shm/new', 'w')",
    ],
)
def test_files_outside_are_as_they_were(attack, backends, tmp_path):
    victim = tmp_path / "victim"
    victim.write_text("precious")
    before = victim.stat()
    program = attack.format(path=str(victim), folder=str(tmp_path))
    assert run_program(program, QUICK, backends).verdict is Verdict.FAILED
    assert victim.read_text() == "precious" and list(tmp_path.iterdir()) == [victim]
    assert (victim.stat().st_mode, victim.stat().st_mtime) == (before.st_mode, before.st_mtime)
    assert not Path("/dev/shm/new").exists()


OUTSIDE = ["/proc/{}/environ", "/proc/self/environ", "/proc/{}/mem", "{root}/README.md", "/etc/passwd"]


@pytest.mark.parametrize("path_template", OUTSIDE)
def test_nothing_outside_is_read(path_template, backends):
    path = path_template.format(os.getpid(), root=ROOT)
    assert run_program(f"open({path!r}, 'rb').read()", QUICK, backends).verdict is Verdict.FAILED


def test_the_environment_is_empty(backends, monkeypatch):
    monkeypatch.setenv("SECRET_OF_THE_PARENT", "1")
    program = "import os\nassert set(os.environ) <= {'LC_ALL', 'LC_CTYPE'}, list(os.environ)"
    assert run_program(program, QUICK, backends).verdict is Verdict.PASSED


def test_no_open_file_is_handed_down(backends):
    with open(ROOT / "README.md") as ours:
        os.set_inheritable(ours.fileno(), True)
        program = f"import os\ntry: os.fstat({ours.fileno()})\nexcept OSError: pass\nelse: raise ValueError"
        assert run_program(program, QUICK, backends).verdict is Verdict.PASSED


def test_raw_system_calls_are_refused(backends):
    """Processes, programs, sockets, tracing, mounts, namespaces, io_uring, memory files, keys, modules."""
    if os.uname().machine != "x86_64":
        pytest.skip("numbers of x86_64")
    numbers = [56, 57, 58, 59, 322, 435, 41, 53, 101, 310, 165, 155, 272, 308, 425, 319, 250, 175, 62, 200]
    numbers += [
        234,
        424,
        438,
        90,
        92,
        157,
        160,
        302,
        321,
        298,
        280,
        76,
        83,
        86,
        88,
        133,
        161,
        304,
        1 << 30 | 57,
    ]
    program = (
        "import ctypes\ncall = ctypes.CDLL(None).syscall\n"
        f"done = [n for n in {numbers} if call(n, 0, 0, 0, 0) != -1]\nassert done == []"
    )
    outcome = run_program(program, QUICK, backends)
    assert outcome.verdict is Verdict.PASSED, outcome


INT_80 = """
import ctypes, mmap
code = mmap.mmap(-1, 4096, prot=7)
code.write(bytes.fromhex("b802000000cd80c3"))
ctypes.CFUNCTYPE(ctypes.c_int)(ctypes.addressof(ctypes.c_char.from_buffer(code)))()
"""


def test_the_old_way_into_the_kernel_is_death(backends):
    """fork by the 32-bit interface, whose numbers mean other calls."""
    if os.uname().machine != "x86_64":
        pytest.skip("code of x86_64")
    assert run_program(INT_80, QUICK, backends).reason == "SIGSYS before its end"


def test_only_input_and_output_are_open(backends):
    program = "import os\nfor n in range(3, 64):\n  try: os.fstat(n)\n  except OSError: continue\n  assert 0"
    assert run_program(program, QUICK, backends).verdict is Verdict.PASSED


def test_what_an_error_says_is_no_way_out(backends):
    endless = "class E(BaseException):\n  def __str__(self):\n    while True: pass\nraise E"
    assert run_program(endless, SHORT, backends).verdict is Verdict.TIMED_OUT
    huge = "class E(Exception):\n  def __str__(self): return 'x' * (1 << 28)\nraise E"
    assert run_program(huge, QUICK, backends).verdict in (Verdict.DIED, Verdict.FAILED)


def test_no_server_of_the_host_is_reached(backends):
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0.2)
        program = (
            f"import urllib.request\nurllib.request.urlopen('http://127.0.0.1:{server.getsockname()[1]}')"
        )
        assert run_program(program, QUICK, backends).verdict is Verdict.FAILED
        with pytest.raises(TimeoutError):
            server.accept()


def test_nothing_runs_on(backends):
    def mine() -> list[str]:
        found = subprocess.run(["ps", "-e", "-o", "args"], capture_output=True, text=True).stdout
        return [line for line in found.splitlines() if "sandbox/child.py" in line and str(ROOT) in line]

    before = set(threading.enumerate())
    forks = "import os\nfor n in range(9):\n  try: os.fork()\n  except OSError: pass\n"
    run_program(forks + "while True: pass", SHORT, backends)
    assert mine() == [] and set(threading.enumerate()) == before


def test_a_killed_parent_takes_its_program_along(tmp_path):
    script = (
        "from dwellmoe.evaluation.sandbox.run import *\n"
        "import threading, os, time\n"
        "threading.Timer(0.5, os._exit, [3]).start()\n"
        "run_program('while True: pass', Limits(wall_seconds=60, cpu_seconds=60))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, timeout=30, env=os.environ | {"TMPDIR": str(tmp_path)}
    )
    assert done.returncode == 3
    test_nothing_runs_on(BACKENDS[:1])


def test_nothing_is_run_unconfined_unless_it_is_named(tmp_path):
    victim = tmp_path / "victim"
    program = f"open({str(victim)!r}, 'w')"
    with pytest.raises(SandboxUnavailable, match=r"cannot be isolated.*allow_unsafe_code"):
        run_program(program, QUICK, ())
    assert not victim.exists()
    assert run_program("pass", QUICK, ("unconfined",)).backend.startswith("unconfined")


def test_a_machine_without_a_table_is_refused():
    with pytest.raises(OSError, match="no table"):
        filter_for("m68k")
    assert len({filter_for(machine) for machine in ARCHITECTURES}) == len(ARCHITECTURES)
    assert all(len(filter_for(machine)) // 8 < 256 for machine in ARCHITECTURES), "jumps are one byte"
