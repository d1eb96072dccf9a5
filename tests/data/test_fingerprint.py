"""A cache key is made from what is here: neither the hub nor a package index is asked for it."""

import pytest

from dwellmoe.data import records
from dwellmoe.data.fingerprint import task_identity
from dwellmoe.data.task import SPLITS, load_task, task_names
from dwellmoe.data.tokenised import tokenise_split


@pytest.fixture
def requested(monkeypatch):
    """Every raw split that is read from the hub or a package; each has twenty rows of its own."""
    found = []

    def read(source, raw_split):
        found.append((source.kind, raw_split))
        return (
            {"question": f"{raw_split} w{n}", "choices": ["w1", "w2"], "answer": n % 2} for n in range(20)
        )

    monkeypatch.setattr(records, "READERS", {"hub": read, "package": read})
    return found


@pytest.mark.parametrize("name", task_names())
def test_no_key_asks_a_source(name, requested):
    for split in SPLITS:
        task_identity(load_task(name), split)
    assert requested == []


def test_rows_in_the_cache_are_served_without_asking_a_source(requested, tokenizer, tmp_path):
    task = load_task("mmlu")
    before = task_identity(task, "validation")
    rows = tokenise_split(task, "validation", tokenizer, 32).to_list()
    assert requested, "the first call fetches"
    assert task_identity(task, "validation") != before, "what is here now counts"
    requested.clear()
    assert tokenise_split(task, "validation", tokenizer, 32).to_list() == rows
    assert requested == []
    assert len([path for path in (tmp_path / "cache" / "tokenised").iterdir() if path.is_dir()]) == 1
