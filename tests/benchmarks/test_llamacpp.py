"""The parts of the benchmark beside llama.cpp that run without it."""

import json
import os
import subprocess
import sys

import pytest
import torch
from llamacpp import take_turns
from llamacpp_files import convert, python_of, write_untied
from memory_limit import MemoryLimit, drop_page_cache, find_controller
from read_ahead import read_ahead, setting_of
from transformers import AutoModelForCausalLM
from workers import Process

from dwellmoe.errors import UserError
from tests.tiny_models import tiny_model

MEGABYTE = 1 << 20


class Noted(Process):
    """A process that notes in which turn it is asked, and runs nothing."""

    def __init__(self, name, turns):
        self.name, self.turns = name, turns

    def call(self, do, **values):
        self.turns.append((self.name, values["prompt"]))
        return values


def test_processes_take_turns_and_the_first_requests_do_not_count():
    turns = []
    workers: dict[str, Process] = {name: Noted(name, turns) for name in "abc"}
    answers = take_turns(workers, [{"prompt": i} for i in range(4)], warm_up=1)
    assert [name for name, _ in turns] == [*"abc", *"bca", *"cab", *"abc"]
    assert answers == {name: [{"prompt": i} for i in (1, 2, 3)] for name in "abc"}


def _limited(program, *words, megabytes=64):
    """A Python program under a limit: its exit code, what it printed, and the peak of its memory."""
    controller = find_controller()
    if controller is None:
        pytest.skip("no memory limit can be set here: root and a memory cgroup are needed")
    with MemoryLimit(controller, "test", megabytes * MEGABYTE) as limit:
        command = limit.around([sys.executable, "-c", program, *map(str, words)])
        done = subprocess.run(command, capture_output=True, text=True)
        peak_bytes = limit.peak_bytes
    assert not limit.folder.exists()
    return done, peak_bytes


def test_a_limit_ends_a_process_that_takes_more():
    done, _ = _limited("print(len(bytearray(16 << 20)))")
    assert done.returncode == 0 and int(done.stdout) == 16 * MEGABYTE
    done, _ = _limited("bytearray(256 << 20)[::4096] = bytes(256 << 8)")
    assert done.returncode == -9


def test_a_limit_counts_the_page_cache(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(os.urandom(128 * MEGABYTE))
    drop_page_cache([path])
    done, peak_bytes = _limited("import sys; print(len(open(sys.argv[1], 'rb').read(1 << 27)[:1]))", path)
    assert done.returncode == -9  # the bytes themselves do not fit
    drop_page_cache([path])
    program = "import sys; file = open(sys.argv[1], 'rb')\nwhile file.read(1 << 20): pass"
    done, peak_bytes = _limited(program, path)
    assert done.returncode == 0
    assert 48 * MEGABYTE < peak_bytes <= 64 * MEGABYTE  # filled up by pages of the file, and given back


def test_the_read_ahead_is_put_back(tmp_path):
    setting = setting_of(tmp_path)
    if setting is None:
        pytest.skip("the read-ahead of this disk cannot be changed")
    before = setting.read_text()
    with read_ahead(tmp_path, 128):
        assert int(setting.read_text()) == 128
    assert setting.read_text() == before
    with read_ahead(tmp_path, None):
        assert setting.read_text() == before


def test_an_untied_copy_computes_the_same(tmp_path):
    tiny_model("olmoe", tie_word_embeddings=True).save_pretrained(tmp_path / "tied")
    folder = write_untied(tmp_path / "tied", tmp_path / "untied")
    assert not json.loads((folder / "config.json").read_text())["tie_word_embeddings"]
    ids = torch.arange(3, 15)[None]
    with torch.no_grad():
        tied, untied = (
            AutoModelForCausalLM.from_pretrained(path)(ids).logits for path in (tmp_path / "tied", folder)
        )
    assert torch.equal(tied, untied)


def test_without_llama_cpp_the_command_that_builds_it_is_named(tmp_path):
    with pytest.raises(UserError, match="make bench-llamacpp"):
        python_of(tmp_path)
    with pytest.raises(UserError, match="make bench-llamacpp"):
        convert(tmp_path, tmp_path / "out.gguf", "f32", tmp_path)
