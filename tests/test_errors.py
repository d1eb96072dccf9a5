"""How mistakes and full disks end a command."""

import errno

import pytest

from dwellmoe.errors import UserError, run_command


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
