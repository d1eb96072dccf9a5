"""What every test here gets: an empty cache, a tokenizer, a data set of a user's own."""

import pytest

from tests.data.stand_ins import word_tokenizer, words, write_task


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    """No test writes into, or profits from, the user's cache unless it says so."""
    monkeypatch.setenv("DWELLMOE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("dwellmoe.log._warned", set())


@pytest.fixture
def tokenizer():
    return word_tokenizer()


@pytest.fixture
def own_task(tmp_path):
    """Four train rows, one validation row, one test row."""
    rows = [{"question": words(n, n + 2), "reply": words(50 + n, 2)} for n in range(6)]
    return write_task(tmp_path, a=rows[:4], b=rows[4:5], c=rows[5:])
