"""What is compiled for the first time says so; what is read from disk does not."""

import numba
import pytest

from dwellmoe.cache.kernel.jit import compiled_for


def step(count) -> int: ...  # type: ignore[empty-body]


def kernel(count):
    return step(count) + 1


def twice(count):
    return 2 * count


@pytest.fixture(autouse=True)
def new_disk_and_log(tmp_path, monkeypatch):
    monkeypatch.setattr(numba.config, "CACHE_DIR", str(tmp_path))
    monkeypatch.setattr("dwellmoe.log._warned", set())


def test_the_first_compilation_is_said(capsys):
    for expected in ("with policy Twice;", ""):
        assert compiled_for("Twice-kind", kernel, step=twice)(4) == 9
        said = capsys.readouterr().err
        assert said.count("\n") == bool(expected) and expected in said
