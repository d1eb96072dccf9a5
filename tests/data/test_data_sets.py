"""Every data set of the project is whole; where its data are here, no example is in two splits."""

import os
from collections import Counter
from pathlib import Path

import pytest

from dwellmoe.data.catalogue import HERE, NOWHERE, entries
from dwellmoe.data.examples import load_examples
from dwellmoe.data.task import SPLITS, TASKS_FOLDER, load_task, task_names

pytestmark = pytest.mark.slow

OF_CFMOE = [
    "alpaca",
    "aqua",
    "boolq",
    "gsm8k",
    "mathqa",
    "mawps",
    "mmlu",
    "obqa",
    "piqa",
    "samsum",
    "siqa",
    "wikitext",
    "common-v1",
]
FORMS = {
    "boolq": "true_false",
    "mmlu": "option_number",
    "piqa": "option_number",
    "obqa": "option_letter",
    "siqa": "option_letter",
    **dict.fromkeys(("aqua", "gsm8k", "mathqa", "mawps"), "rationale"),
    **dict.fromkeys(("alpaca", "samsum", "wikitext"), "free_text"),
}
USERS_CACHE = Path(os.environ.get("DWELLMOE_CACHE", Path.home() / ".cache" / "dwellmoe"))


@pytest.fixture(autouse=True)
def users_cache(own_cache, monkeypatch):
    """Here the user's own cache is read: data that are not in it are not fetched, their tests are skipped."""
    monkeypatch.setenv("DWELLMOE_CACHE", str(USERS_CACHE))
    monkeypatch.setattr("dwellmoe.data.remote.hub_answers", lambda: False)


def test_the_thirteen_are_there():
    assert set(OF_CFMOE) <= set(task_names())


@pytest.mark.parametrize("name", FORMS)
def test_answers_have_the_form_of_cfmoe(name):
    assert load_task(name).form == FORMS[name]


@pytest.mark.parametrize("name", task_names())
def test_each_says_what_it_is_and_offers_its_splits(name):
    task = load_task(name)
    assert task.name == name and task.summary and task.licence
    places = next(entry for entry in entries() if entry.name == name).splits
    assert [split for split in SPLITS if places[split] == NOWHERE] == list(SPLITS[:2]) * task.benchmark


def test_no_code_lies_in_the_folders():
    """An `__init__.py` there would hide the `datasets` package, too."""
    assert list(TASKS_FOLDER.rglob("*.py")) == []


@pytest.mark.parametrize("name", ["arc_easy", "boolq", "mmlu", "obqa", "piqa"])
def test_no_example_is_in_two_splits(name):
    states = next(entry.splits for entry in entries() if entry.name == name)
    if set(states.values()) != {HERE}:
        pytest.skip(f"{name} is not in the cache: python data_preparer.py fetch {name}")
    sets = [{(e.prompt, e.answer) for e in load_examples(load_task(name), split)} for split in SPLITS]
    assert all(sets)
    assert max(Counter(example for one in sets for example in one).values()) == 1
