"""Training under a strategy runs what a cache of that size would have run, request by request."""

from typing import Any

import numpy as np
import pytest
import torch

from dwellmoe.data.collate import PackingCollator, PaddingCollator
from dwellmoe.errors import UserError
from dwellmoe.families import find_moe_layers
from dwellmoe.locality.rerouted_training import TrainingCache
from dwellmoe.locality.rerouting_options import check_rerouting
from dwellmoe.locality.settings import LocalitySettings
from dwellmoe.routing import RouterTap, SimulatedCache
from tests.test_trainer import gate_gradient, rows, trainer_of
from tests.tiny_models import tiny_model

STRATEGY, CACHE = "margin:loss=0.9", "lru@4"


def chosen_in(model, strategy, batch):
    """[L, B * T, K] of one forward pass."""
    seen, inputs = [], {name: value for name, value in batch.items() if name not in ("segment_ids", "labels")}
    with torch.no_grad(), RouterTap(model, find_moe_layers(model), [seen.append], strategy):
        model(**inputs)
    return torch.stack([output.indices_TK for output in seen])


def test_packed_requests_choose_as_they_do_one_to_a_row():
    """The same requests, in the same order: packed into one row, and deployed as evaluation does it."""
    model = tiny_model("olmoe")
    layers, examples = find_moe_layers(model), sorted(rows(4), key=lambda row: -len(row["input_ids"]))
    packed, padded = PackingCollator(0, 100)(examples), PaddingCollator(0)(examples)
    trained = TrainingCache(model, layers, STRATEGY, CACHE)
    for _ in range(2):  # the cache begins cold with each batch
        found = chosen_in(model, trained.of_batch(packed["segment_ids"], packed["labels"]), packed)
    deployed = SimulatedCache(model, layers, STRATEGY, policy="lru", capacity=4)
    valid = padded["attention_mask"].numpy().astype(bool)
    deployed.describe(range(len(examples)), valid, (padded["labels"] != -100).numpy())
    expected = chosen_in(model, deployed, padded)
    assert torch.equal(found, expected[:, torch.from_numpy(valid.ravel())])
    assert not torch.equal(found, chosen_in(model, None, packed))
    tallies = [np.sum(list(cache.tallies.values()), axis=0) for cache in (trained.cache, deployed)]
    assert (tallies[0] == tallies[1]).all()


@pytest.mark.parametrize("strategy", [STRATEGY, "cecar:fill=drop,tau=1"])
def test_the_gradient_is_that_of_the_rerouted_pass(tmp_path, strategy):
    gradients = [
        gate_gradient(tmp_path, tiny_model("olmoe"), train_rerouting=each, train_rerouting_cache=CACHE)
        for each in (strategy, "none", None)
    ]
    assert torch.isfinite(gradients[0]).all() and not torch.equal(gradients[0], gradients[1])
    assert torch.equal(gradients[1], gradients[2])


def test_a_rerouted_run_trains_and_validates_alike(tmp_path):
    """What is validated is the re-routed model, whatever ran before."""
    locality = LocalitySettings(train_rerouting=STRATEGY, train_rerouting_cache=CACHE)
    trainer = trainer_of(tmp_path, tiny_model("olmoe"), locality)
    before: Any = trainer.evaluate()
    assert trainer.evaluate()["eval_loss"] == before["eval_loss"]
    trainer.train()
    plain = trainer_of(tmp_path, tiny_model("olmoe"), LocalitySettings())
    assert plain.evaluate()["eval_lm_loss"] != before["eval_lm_loss"]


@pytest.mark.parametrize(
    ("strategy", "cache", "message"),
    [
        ("margins", CACHE, "unknown routing strategy 'margins'"),
        ("margin", "25%", "expected POLICY@CAPACITY"),
        ("margin", "opt@25%", "cannot run live"),
        ("margin", "lru@many", "capacity 'many'"),
    ],
)
def test_mistakes_are_found_before_anything_is_loaded(strategy, cache, message):
    with pytest.raises(UserError, match=message):
        check_rerouting(strategy, cache)


def test_a_cache_too_small_is_refused():
    model = tiny_model("olmoe")
    with pytest.raises(UserError, match="leaves 1 slots a layer: a token needs 2 of 8"):
        TrainingCache(model, find_moe_layers(model), "margin", "lru@1")
