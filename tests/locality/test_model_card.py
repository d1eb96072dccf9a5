"""The model card states what was measured, before and after, and with which libraries."""

import math
from importlib.metadata import version
from pathlib import Path

import pytest

from dwellmoe.locality.model_card import library_versions, model_card

BEFORE = {"eval_lm_loss": 2.0, "eval_ecr": 0.25, "eval_hit_rate_lru_25": 0.5}
AFTER = {"eval_lm_loss": 1.5, "eval_ecr": 0.375}


def rows_of(card):
    lines = [line.strip("| ").split(" | ") for line in card.splitlines() if line.startswith("| ")]
    return {name: values for name, *values in lines}


def card_of(history, is_adapter=True):
    facts = {"target": "none", "libraries": library_versions()}
    return model_card(Path("out"), "org/base", is_adapter, facts, history)


def test_quality_and_locality_before_and_after():
    rows = rows_of(card_of([(0, BEFORE), (40, AFTER)]))
    assert rows["validation"] == ["step 0", "step 40"]
    assert [float(value) for value in rows["perplexity"]] == pytest.approx(
        [math.exp(2), math.exp(1.5)], rel=1e-3
    )
    assert rows["expert consistency rate"] == ["0.25", "0.375"]
    assert rows["hit rate of an LRU cache of 25 % of the experts"] == ["0.5", "not measured"]


def test_versions_of_what_is_installed():
    found = dict(each.split(" ", 1) for each in rows_of(card_of([]))["libraries"][0].split(", "))
    for name in ("torch", "transformers", "peft"):
        assert found[name] == version(name)


@pytest.mark.parametrize("is_adapter", [True, False])
def test_limits_stand_on_every_card_and_a_loss_too_large_for_a_float_is_no_error(is_adapter):
    card = card_of([(1, BEFORE | {"eval_lm_loss": 1e6})], is_adapter)
    assert "## Limits" in card and "## Measured" in card
    assert "## Measured" not in card_of([], is_adapter)
    assert "## Before and after" in card_of([(0, BEFORE), (40, AFTER)], is_adapter)
