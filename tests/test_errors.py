"""How mistakes, what the system refuses, interrupts and readers that leave end a command."""

import errno
import importlib
import os
import signal
import subprocess
import sys
import time

import pytest
from safetensors import SafetensorError

from dwellmoe.errors import INTERRUPTED, READER_LEFT, REFUSED, UserError, needs, run_command
from tests.conftest import ROOT

IN_USE = (
    "The server socket has failed to listen on any local network address. port: 29511, useIpv6: false, "
    "code: -98, name: EADDRINUSE, message: address already in use"
)


def ended(raised, capsys):
    """Exit code and what is on standard error."""

    def command():
        raise raised

    with pytest.raises(SystemExit) as end:
        run_command(command)
    return end.value.code, capsys.readouterr().err


@pytest.mark.parametrize(
    ("raised", "told"),
    [
        (UserError("no such thing"), "error: no such thing\n"),
        (FileNotFoundError(errno.ENOENT, "No such file", "a.bin"), "error: a.bin: No such file\n"),
        (OSError(errno.EMFILE, "Too many open files"), "error: the system refused: Too many open files\n"),
        (RuntimeError(IN_USE), "error: port 29511 is in use: choose another, as with --master_port\n"),
        (
            SafetensorError("Error while serializing: IoError(Os { code: 28, kind: StorageFull })"),
            "error: the system refused: No space left on device\n",
        ),
        (SafetensorError("I/O error: Read-only file system (os error 30)"), "Read-only file system\n"),
        (MemoryError("Unable to allocate 43 GiB"), "error: not enough memory: Unable to allocate 43 GiB\n"),
        (
            RuntimeError("[enforce fail at alloc_cpu.cpp:118] DefaultCPUAllocator: can't allocate memory"),
            "error: not enough memory: ",
        ),
        (
            RuntimeError("[../gloo/transport/tcp/pair.cc:553] Connection closed by peer [127.0.0.1]:431."),
            "error: another rank ended before this one",
        ),
    ],
)  # fmt: skip
def test_one_line_and_exit_code_2(raised, told, capsys):
    code, said = ended(raised, capsys)
    assert code == 2 and told in said and said.startswith("error: ") and said.count("\n") == 1


@pytest.mark.parametrize("number", sorted(REFUSED - {errno.EPIPE}), ids=errno.errorcode.get)
def test_what_the_system_refuses_names_the_path(number, capsys):
    refused = OSError(number, os.strerror(number), "out/a.bin")
    assert ended(refused, capsys) == (2, f"error: out/a.bin: {os.strerror(number)}\n")


@pytest.mark.parametrize(
    "raised", [FileNotFoundError(errno.ENOENT, "a bug"), RuntimeError("a bug"), OSError("x")]
)
def test_our_own_faults_keep_their_traceback(raised):
    def command():
        raise raised

    with pytest.raises(type(raised)):
        run_command(command)


def test_a_missing_package_names_the_extra_that_brings_it():
    with pytest.raises(UserError, match=r'pip install "dwellmoe\[sim\]"'), needs("sim"):
        importlib.import_module("numba_that_is_not_installed")
    with pytest.raises(ModuleNotFoundError), needs("sim"):
        importlib.import_module("dwellmoe.nothing")


WRITERS = {
    "print": "print('x' * 100_000)",
    "at the end": "print('x')",
    "rich": "from rich.console import Console; Console().print('x')",
    "exit": "print('x'); sys.exit(0)",
}


@pytest.mark.parametrize("writer", WRITERS)
@pytest.mark.parametrize("stderr_too", [False, True])
def test_a_reader_that_leaves_ends_a_command_quietly(writer, stderr_too):
    code = (
        f"import sys\nfrom dwellmoe.errors import run_command\ndef f():\n {WRITERS[writer]}\nrun_command(f)"
    )
    reading, writing = os.pipe()
    os.close(reading)
    stderr = writing if stderr_too else subprocess.PIPE
    command = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=writing, stderr=stderr)
    os.close(writing)
    _, said = command.communicate(timeout=60)
    assert command.returncode == READER_LEFT and not said


SLOW = "import time; print('begun', flush=True); time.sleep(60)"


@pytest.mark.parametrize("where", ["importing", "running"])
def test_an_interrupt_is_one_line_at_any_time(where, tmp_path):
    """While `begin` reads the command line, in a slow import after it, and in the command."""
    (tmp_path / "slow.py").write_text(SLOW)
    (tmp_path / "quick.py").write_text("def parse(words): return words\n\ndef check(words): pass")
    last = "import slow" if where == "importing" else "run_command(lambda: __import__('slow'))"
    code = (
        "from dwellmoe.launch import begin\nfrom dwellmoe.errors import run_command\n"
        f"begin('quick:parse', 'quick:check')\n{last}"
    )
    environment = os.environ | {"PYTHONPATH": f"{ROOT}:{tmp_path}"}
    command = subprocess.Popen(
        [sys.executable, "-c", code],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    assert command.stdout is not None and command.stdout.readline() == "begun\n"
    time.sleep(0.1)
    command.send_signal(signal.SIGINT)
    _, said = command.communicate(timeout=60)
    assert (command.returncode, said) == (INTERRUPTED, "interrupted\n")
