"""Files and folders appear whole or not at all; the project's own files are found from any folder."""

import os
import stat
import subprocess
import sys
import threading

import pytest

from dwellmoe.cache.device import load_device
from dwellmoe.errors import UserError
from dwellmoe.files import check_writable, data_file, find_file, replacing, replacing_path
from tests.conftest import ROOT


def names(folder) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_file_takes_its_place_when_it_is_whole(tmp_path):
    target = tmp_path / "a.txt"
    for text in (b"one", b"two"):
        with replacing(target) as file:
            file.write(text)
            assert names(tmp_path) != ["a.txt"]
    assert target.read_bytes() == b"two" and names(tmp_path) == ["a.txt"]


def test_after_an_error_the_old_file_stays(tmp_path):
    target = tmp_path / "a.txt"
    target.write_text("old")
    with pytest.raises(RuntimeError), replacing(target) as file:
        file.write(b"half")
        raise RuntimeError
    assert target.read_text() == "old" and names(tmp_path) == ["a.txt"]


def write(path, content: bytes) -> None:
    check_writable(path)
    with replacing(path) as file:
        file.write(content)


@pytest.mark.parametrize("existing", [True, False])
def test_of_a_link_what_it_leads_to_is_replaced(tmp_path, existing):
    folder, link, chain = tmp_path / "real", tmp_path / "link", tmp_path / "chain"
    folder.mkdir()
    if existing:
        (folder / "a").write_text("old")
    link.symlink_to(folder / "a")
    chain.symlink_to("link")
    write(chain, b"new")
    assert link.is_symlink() and chain.is_symlink() and (folder / "a").read_text() == "new"
    assert names(folder) == ["a"]


def test_of_a_link_to_a_folder_the_folder_is_replaced(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    with replacing_path(tmp_path / "link") as beside:
        beside.mkdir()
        (beside / "a").touch()
    assert (tmp_path / "link").is_symlink() and names(tmp_path / "real") == ["a"]


@pytest.mark.parametrize("through_link", [True, False])
def test_a_device_stays_a_device(tmp_path, through_link):
    (tmp_path / "null").symlink_to(os.devnull)
    write(tmp_path / "null" if through_link else os.devnull, b"x")
    assert stat.S_ISCHR(os.stat(os.devnull).st_mode) and (tmp_path / "null").is_symlink()


def test_a_named_pipe_gets_what_is_written(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    read: list[bytes] = []
    reader = threading.Thread(target=lambda: read.append((tmp_path / "pipe").read_bytes()))
    reader.start()
    write(tmp_path / "pipe", b"through")
    reader.join(timeout=10)
    assert read == [b"through"] and names(tmp_path) == ["pipe"]


def test_an_open_stream_gets_what_is_written():
    reading, writing = os.pipe()
    write(f"/dev/fd/{writing}", b"through")
    os.close(writing)
    with open(reading, "rb") as file:
        assert file.read() == b"through"


def test_standard_output_in_a_file_keeps_what_else_is_printed(tmp_path):
    before = os.lstat("/dev/stdout")
    code = (
        "from dwellmoe.files import replacing\nprint('before')\n"
        "with replacing('/dev/stdout') as file: file.write(b'between\\n')\nprint('after')"
    )
    with open(tmp_path / "out", "wb") as out:
        subprocess.run([sys.executable, "-c", code], cwd=ROOT, stdout=out, check=True)
    assert (tmp_path / "out").read_text() == "before\nbetween\nafter\n"
    assert os.lstat("/dev/stdout").st_ino == before.st_ino


def test_a_replaced_file_keeps_its_permissions(tmp_path):
    (tmp_path / "a").touch(mode=0o640)
    (tmp_path / "a").chmod(0o640)
    write(tmp_path / "a", b"new")
    assert stat.S_IMODE(os.stat(tmp_path / "a").st_mode) == 0o640


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("loop", "Too many levels of symbolic links"),
        ("x" * 300, "File name too long"),
        ("file/a", "Not a directory"),
        ("none/a", "there is no folder"),
        ("folder", "not the name of a file"),
        ("folder/", "not the name of a file"),
    ],
)
def test_what_cannot_be_written_is_refused_at_once(tmp_path, name, why):
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "file").touch()
    (tmp_path / "folder").mkdir()
    for refuse in (check_writable, lambda path: write(path, b"")):
        with pytest.raises(UserError, match=why):
            refuse(f"{tmp_path}/{name}")
    assert names(tmp_path) == ["file", "folder", "loop"]


def test_the_longest_name_can_be_written(tmp_path):
    write(tmp_path / ("é" * 127), b"x")
    assert names(tmp_path) == ["é" * 127]


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_a_path_takes_its_place_when_it_is_whole(tmp_path, kind):
    target = tmp_path / "new" / "target"

    def make(path, text):
        if kind == "folder":
            path.mkdir()
            path /= text
        path.write_text(text)

    with pytest.raises(RuntimeError), replacing_path(target) as beside:
        make(beside, "half")
        raise RuntimeError
    assert names(target.parent) == []
    make(target.with_name(".target.part"), "of a killed process")
    for text in ("one", "two"):
        with replacing_path(target) as beside:
            assert not beside.exists()
            make(beside, text)
    assert names(target.parent) == ["target"]
    assert names(target) == ["two"] if kind == "folder" else target.read_text() == "two"


def test_the_projects_files_are_found_from_any_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    profile = "configs/devices/gpu_8gb.toml"
    assert find_file(profile) == data_file(profile)
    assert load_device(profile).name
    (tmp_path / profile).parent.mkdir(parents=True)
    (tmp_path / profile).write_text("own")
    assert find_file(profile).read_text() == "own"
    assert os.fspath(find_file("none.toml")) == "none.toml"
