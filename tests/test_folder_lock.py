"""One writer a folder: another process is refused, what a killed one left is taken over."""

import os
import signal
import subprocess
import sys

import pytest

from dwellmoe.errors import UserError
from dwellmoe.files import written_whole
from dwellmoe.folder_lock import LOCK_NAME, only_writer
from tests.conftest import ROOT

HOLD = """
import sys, time
from pathlib import Path
from dwellmoe.folder_lock import only_writer
with only_writer(Path(sys.argv[1])):
    print("locked", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def holder(tmp_path):
    """Another process that holds the folder."""
    command = [sys.executable, "-c", HOLD, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT) as process:
        assert process.stdout.readline() == "locked\n"
        yield process
        process.kill()


def test_a_second_writer_is_refused_with_the_first_ones_process(holder, tmp_path):
    with pytest.raises(UserError, match=rf"process {holder.pid} on .*--out"), only_writer(tmp_path, "--out"):
        raise AssertionError("two writers in one folder")


def test_a_killed_writer_is_taken_over_and_named(holder, tmp_path, capsys):
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    (tmp_path / ".unfinished-a").mkdir()
    (tmp_path / ".unfinished-a" / "half.bin").write_bytes(b"half")
    with only_writer(tmp_path), written_whole(tmp_path) as beside:
        assert [*tmp_path.glob(".unfinished*")] == [beside]
        assert f"process {os.getpid()} " in (tmp_path / LOCK_NAME).read_text()
    assert f"process {holder.pid} " in capsys.readouterr().err


def test_an_ended_writer_leaves_nothing(tmp_path, capsys):
    for _ in range(2):
        with only_writer(tmp_path / "new"):
            pass
    assert not list((tmp_path / "new").iterdir())
    assert not capsys.readouterr().err


def test_a_file_in_place_of_the_folder_is_a_users_mistake(tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(UserError, match="file"), only_writer(tmp_path / "file"):
        raise AssertionError("a file is no folder")
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.parametrize("content", [b"", b"\xff\x00" * 500, b"a\nb\n" * 500, b"process 1\nb"])
def test_a_lock_file_of_any_content_is_taken_over(tmp_path, capsys, content):
    (tmp_path / LOCK_NAME).write_bytes(content)
    with only_writer(tmp_path):
        pass
    said = capsys.readouterr().err
    assert ("unknown process" in said) == bool(content) and len(said.splitlines()) <= 1


@pytest.mark.parametrize("make", [os.mkdir, os.mkfifo])
def test_what_is_no_file_in_place_of_the_lock_is_a_users_mistake(tmp_path, make):
    make(tmp_path / LOCK_NAME)
    with pytest.raises(UserError, match="is no regular file"), only_writer(tmp_path):
        raise AssertionError("no lock")
