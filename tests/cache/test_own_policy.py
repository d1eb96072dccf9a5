"""A policy registered from a user's own file is a policy like any other."""

import itertools

import numpy as np
import pytest

from dwellmoe.cache.expert_cache import ExpertCache
from dwellmoe.cache.kernel.jit import label_of
from dwellmoe.cache.policies.base import parse_policy, policy_names
from dwellmoe.cache.replay.curve import curve
from dwellmoe.cache.replay.replay import replay
from dwellmoe.errors import UserError
from dwellmoe.registry import load_plugin
from tests.cache.traces import random_trace

pytestmark = pytest.mark.slow

OWN_LRU = """
from typing import NamedTuple
import numpy as np
from dwellmoe.cache.policies.base import POLICIES

@POLICIES.register("NAME")
class Own(NamedTuple):
    used: np.ndarray  # [caches, E]: number of the last access, 0 for not resident
    lookahead = "none"

    @classmethod
    def allocate(cls, shape): return cls(np.zeros((shape.caches, shape.experts), np.int64))
    def reset(self, cache): self.used[cache, :] = 0
    def on_access(self, cache, expert, inserted, now): self.used[cache, expert] = now.access
    def remove(self, cache, expert): self.used[cache, expert] = 0
    def evict(self, cache, protected, now):
        best = -1
        for e in range(self.used.shape[1]):
            free = self.used[cache, e] > 0 and (now.request < 0 or protected[cache, e] != now.request)
            if free and (best < 0 or self.used[cache, e] < self.used[cache, best]): best = e
        self.used[cache, best] = 0
        return best
"""
numbers = itertools.count()


def registered(file, code=OWN_LRU) -> str:
    """The name under which a policy of this code was registered from `file`."""
    name = f"own{next(numbers)}"
    file.write_text(code.replace("NAME", name))
    load_plugin(file)
    return name


@pytest.fixture(scope="module")
def own(tmp_path_factory) -> str:
    return registered(tmp_path_factory.mktemp("plugin") / "own.py")


@pytest.mark.parametrize("scope", ["layer", "global"])
@pytest.mark.parametrize("access", ["atomic", "sequential"])
def test_it_replays_as_the_shipped_one(own, scope, access):
    trace = random_trace(8, steps=150)
    for capacity in (4, 9):
        found, shipped = (replay(trace, spec, capacity, scope=scope, access=access) for spec in (own, "lru"))
        assert (found.hits, found.evictions) == (shipped.hits, shipped.evictions)


def test_it_serves_live_and_in_curves(own):
    trace = random_trace(9)
    rows = curve(trace, [own, "lru"])
    assert [row.hits for row in rows if row.policy == own] == [
        row.hits for row in rows if row.policy == "lru"
    ]
    rng = np.random.default_rng(0)
    mine, shipped = (ExpertCache(spec, layers=2, experts=8, capacity=4) for spec in (own, "lru"))
    for _ in range(100):
        layer, experts = int(rng.integers(2)), rng.permutation(8)[:3].tolist()
        assert mine.request(layer, experts) == shipped.request(layer, experts)
        gone = int(rng.integers(8))
        assert mine.remove(layer, gone) == shipped.remove(layer, gone)


def test_an_edited_file_never_meets_the_code_of_before(tmp_path):
    file, trace = tmp_path / "own.py", random_trace(10, steps=150)
    first = registered(file)
    label = label_of(parse_policy(first)[0])
    before = replay(trace, first, 5)
    edited = registered(file, OWN_LRU.replace("] < self.used", "] > self.used"))
    assert label_of(parse_policy(edited)[0]) != label
    assert replay(trace, edited, 5).hits != before.hits == replay(trace, "lru", 5).hits


def test_a_name_can_be_registered_after_it_was_looked_for(tmp_path):
    with pytest.raises(UserError, match="unknown policy 'late'"):
        parse_policy("late")
    (tmp_path / "own.py").write_text(OWN_LRU.replace("NAME", "late"))
    load_plugin(tmp_path / "own.py")
    assert "late" in policy_names() and parse_policy("late")[0].lookahead == "none"


@pytest.mark.parametrize(
    ("hook", "named"),
    [("    def remove", "remove"), ("    def evict", "evict"), ("    lookahead", "lookahead")],
)
def test_an_incomplete_policy_is_refused(tmp_path, hook, named):
    name = registered(tmp_path / "own.py", OWN_LRU.replace(hook, hook.replace(named, "other")))
    with pytest.raises(UserError, match=named):
        parse_policy(name)
