"""How mistakes and full disks end a command."""

import errno
import importlib

import pytest

from dwellmoe.errors import UserError, needs, run_command


@pytest.mark.parametrize(
    ("raised", "told"),
    [
        (UserError("no such thing"), "error: no such thing\n"),
        (
            OSError(errno.ENOSPC, "No space left on device", "a.bin"),
            "error: a.bin: No space left on device\n",
        ),
    ],
)
def test_one_line_and_exit_code_2(raised, told, capsys):
    def command():
        raise raised

    with pytest.raises(SystemExit) as end:
        run_command(command)
    assert end.value.code == 2
    assert capsys.readouterr().err == told


def test_our_own_faults_keep_their_traceback():
    def command():
        raise FileNotFoundError(errno.ENOENT, "a bug")

    with pytest.raises(FileNotFoundError):
        run_command(command)


def test_a_missing_package_names_the_extra_that_brings_it():
    with pytest.raises(UserError, match=r'pip install "dwellmoe\[sim\]"'), needs("sim"):
        importlib.import_module("numba_that_is_not_installed")
    with pytest.raises(ModuleNotFoundError), needs("sim"):
        importlib.import_module("dwellmoe.nothing")
