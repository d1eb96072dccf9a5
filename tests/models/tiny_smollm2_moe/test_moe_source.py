from pathlib import Path

import pytest
import torch

import moe_source
from dwellmoe.data.examples import Example
from dwellmoe.data.task import load_task
from dwellmoe.errors import UserError
from tests.data.stand_ins import word_tokenizer, words

ROOT = Path(__file__).resolve().parents[3]


@pytest.mark.parametrize(
    "path", sorted((ROOT / "runs" / "second_model").glob("*.toml")), ids=lambda p: p.stem
)
def test_the_tasks_of_the_run_are_well_formed(path, monkeypatch):
    monkeypatch.chdir(ROOT)
    assert load_task(str(path)).metric == "perplexity"


def test_nothing_is_healed_on_what_is_held_out():
    healing = {load_task(name).name for name in moe_source.HEALING_SETS}
    assert len(healing) == len(moe_source.HEALING_SETS)
    assert healing.isdisjoint(moe_source.HELD_OUT_SETS)


@pytest.fixture
def texts(monkeypatch):
    """In place of every data set: 10 texts, each twice; the data set's name gives the first word."""
    first = {name: number for number, name in enumerate(moe_source.HEALING_SETS)}

    def examples(name, _split):
        return [Example("", words(10 * first[name], 2) + words(n % 10, 30), {}) for n in range(20)]

    monkeypatch.setattr(moe_source, "load_task", lambda name: name)
    monkeypatch.setattr(moe_source, "load_examples", examples)
    monkeypatch.setattr(moe_source, "ROW_TOKENS", 16)


def test_more_rows_begin_with_the_same_rows(texts):
    few, many = (moe_source.healing_rows(word_tokenizer(), count, 0) for count in (16, 30))
    assert many.shape == (30, 16)
    assert torch.equal(many[:16], few)


def test_too_little_text_is_an_error(texts):
    with pytest.raises(UserError, match="3200 are needed"):
        moe_source.healing_rows(word_tokenizer(), 8 * 200, 0)
