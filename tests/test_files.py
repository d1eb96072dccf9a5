"""Files and folders appear whole or not at all; the project's own files are found from any folder."""

import os

import pytest

from dwellmoe.cache.device import load_device
from dwellmoe.files import data_file, find_file, replacing, replacing_path


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
