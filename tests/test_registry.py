"""Plug-ins from a user's file work by their names; a file that cannot serve is refused in one line."""

import inspect

import numpy as np
import pytest
import torch

import dwellmoe
from dwellmoe.cache.formats import read_trace, write_trace
from dwellmoe.cache.policies.base import parse_policy
from dwellmoe.cache.prediction import predictions, used_of
from dwellmoe.errors import UserError
from dwellmoe.families import find_moe_layers
from dwellmoe.locality.objectives import load_objective
from dwellmoe.registry import REGISTRIES, load_plugin, registry_of
from dwellmoe.routing.rerouter import Rerouter
from dwellmoe.routing.strategies import load_strategy
from dwellmoe.routing.strategies.base import RoutingStrategy
from tests.cache.traces import random_trace
from tests.tiny_models import tiny_model

OBJECTIVE = """
import dwellmoe as dm

@dm.register_objective("mean_logit")
def loss(logits_LBTE, chosen_LBTK, mask_BP, *, scale=1.0):
    return scale * logits_LBTE.float().mean()
"""
STRATEGY = """
from dataclasses import dataclass

import dwellmoe as dm

@dm.register_strategy("first_ids")
@dataclass(frozen=True, kw_only=True)
class FirstIds:
    begin: int = 0

    def choose(self, seen):
        import numpy as np
        return np.broadcast_to(np.arange(seen.top_k) + self.begin, seen.own_TK.shape).copy()
"""
FAMILY = """
import dwellmoe as dm
from dwellmoe.families import MoeFamily

dm.register_family("olmoe")(MoeFamily(router=("selector",)))
"""
PREDICTOR = """
import dwellmoe as dm
from dwellmoe.cache.predictors.ewma import Ewma

@dm.register_predictor("quick_ewma")
class QuickEwma(Ewma):
    def __init__(self, layers, experts, *, alpha=0.9):
        super().__init__(layers, experts, alpha=alpha)
"""
TRACE_FORMAT = """
import json
from pathlib import Path

import numpy as np

import dwellmoe as dm

@dm.register_trace_format("lists")
class Lists:
    SUFFIXES = (".lists",)
    HINTS = ("num_experts",)

    @staticmethod
    def recognise(head):
        return head.startswith(b"[[[")

    @staticmethod
    def read(path, num_experts):
        experts = np.array(json.loads(Path(path).read_text()), np.uint16)
        zeros = np.zeros(len(experts), np.int32)
        return dm.RoutingTrace(experts, zeros.astype(np.uint8) + 1, zeros, num_experts)

    @staticmethod
    def write(trace, path):
        Path(path).write_text(json.dumps(trace.experts.tolist()))
"""
NOTHING = "import dwellmoe"
RAISES = "import dwellmoe\n\nraise RuntimeError('first\\nsecond')"
TWICE = FAMILY + FAMILY
TAKEN = OBJECTIVE.replace("mean_logit", "js")
BROKEN = "def loss(:"


@pytest.fixture(autouse=True)
def registrations_end_with_the_test(monkeypatch):
    for kind in REGISTRIES:
        registry = registry_of(kind)
        monkeypatch.setattr(registry, "_registered", {**registry._registered})
        monkeypatch.setattr(registry, "_origins", {**registry._origins})


@pytest.fixture
def plugin(tmp_path):
    """Writes a user's file and loads it; gives its path."""

    def load(text: str):
        path = tmp_path / "mine.py"
        path.write_text(text)
        load_plugin(path)
        return path

    return load


def test_an_objective_of_the_user(plugin):
    plugin(OBJECTIVE)
    logits = torch.randn(2, 1, 3, 4)
    chosen, mask = torch.zeros(2, 1, 3, 1, dtype=torch.long), torch.ones(1, 2, dtype=torch.bool)
    assert load_objective("mean_logit:scale=3")(logits, chosen, mask) == pytest.approx(
        3 * logits.mean().item()
    )
    with pytest.raises(UserError, match=r"mean_logit:size=2.*size.*scale"):
        load_objective("mean_logit:size=2")


def test_a_routing_strategy_of_the_user_after_the_name_was_unknown(plugin):
    with pytest.raises(UserError, match="first_ids"):
        load_strategy("first_ids")
    plugin(STRATEGY)
    model = tiny_model("olmoe")
    rerouter = Rerouter(model, find_moe_layers(model), "first_ids:begin=2")
    strategy: RoutingStrategy = rerouter.strategy
    assert type(strategy).__name__ == "FirstIds"
    from tests.routing.contexts import TOP_K, context

    assert strategy.choose(context())[0].tolist() == list(range(2, 2 + TOP_K))


def test_a_family_of_the_user(plugin):
    model = tiny_model("olmoe")
    for layer in model.model.layers:
        layer.mlp.selector = layer.mlp._modules.pop("gate")
    with pytest.raises(UserError, match="expected a router beside"):
        find_moe_layers(model)
    plugin(FAMILY)
    assert [layer.router for layer in find_moe_layers(model)] == [
        f"model.layers.{i}.mlp.selector" for i in range(3)
    ]


def test_a_predictor_of_the_user(plugin):
    plugin(PREDICTOR)
    trace = random_trace(0, steps=40)
    used = used_of(trace)
    found = predictions("quick_ewma:alpha=0.5", trace, used)
    assert np.array_equal(found, predictions("ewma:alpha=0.5", trace, used))
    assert not np.array_equal(found, predictions("quick_ewma", trace, used))


def test_a_trace_format_of_the_user(plugin, tmp_path):
    plugin(TRACE_FORMAT)
    trace = random_trace(0, steps=40)
    write_trace(trace, tmp_path / "t.lists")
    found = read_trace(tmp_path / "t.lists", num_experts=trace.num_experts)
    assert np.array_equal(found.experts, trace.experts)
    with pytest.raises(UserError, match=r"t\.xyz.*\.lists"):
        write_trace(trace, tmp_path / "t.xyz")


@pytest.mark.parametrize("kind", REGISTRIES)
def test_an_unknown_name_lists_the_nearest_all_others_and_the_users_files(kind):
    registry = registry_of(kind)
    name = f"mine_{kind}"
    getattr(dwellmoe, f"register_{kind}")(name)(object())
    with pytest.raises(UserError) as told:
        registry.get(f"{name}x")
    message = str(told.value)
    assert f"unknown {registry.kind} '{name}x': did you mean '{name}'? " in message
    assert f"{name} ({__file__})" in message
    assert all(known in message for known in registry.names())
    assert "\n" not in message


def test_a_name_that_is_taken_names_its_file(plugin):
    path = plugin(OBJECTIVE)
    with pytest.raises(UserError, match=f"'mean_logit' is registered already, by {path}"):
        dwellmoe.register_objective("mean_logit")
    with pytest.raises(UserError, match=r"'js' is registered already, by dwellmoe\.locality\.objectives\.js"):
        dwellmoe.register_objective("js")


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        (NOTHING, "registers nothing"),
        (RAISES, "RuntimeError: first"),
        (TWICE, "'olmoe' is registered already"),
        (TAKEN, "'js' is registered already"),
        (BROKEN, "SyntaxError"),
    ],
)
def test_a_file_that_cannot_serve_says_so_in_one_line(plugin, tmp_path, text, fault):
    with pytest.raises(UserError) as told:
        plugin(text)
    message = str(told.value)
    assert message.startswith(f"--plugin {tmp_path / 'mine.py'}: ")
    assert fault in message and "\n" not in message


@pytest.mark.parametrize("name", ["none.py", "folder", "notes.txt"])
def test_a_path_that_is_no_python_file_is_refused(tmp_path, name):
    (tmp_path / "folder").mkdir()
    (tmp_path / "notes.txt").write_text("")
    with pytest.raises(UserError, match=f"--plugin .*{name}: "):
        load_plugin(tmp_path / name)


def numeric_options(kind: str):
    """(spec, what a hostile value is given to) of every option of what is shipped."""
    for name in registry_of(kind).names():
        plugin = registry_of(kind).get(name)
        takes = plugin.allocate if kind == "policy" else plugin
        for option in inspect.signature(takes).parameters.values():
            if option.kind is option.KEYWORD_ONLY and type(option.default) in (int, float):
                yield f"{name}:{option.name}"


USES = {"policy": parse_policy, "strategy": load_strategy, "objective": load_objective}


@pytest.mark.parametrize("kind", USES)
@pytest.mark.parametrize("value", ["nan", "inf", "-inf", "9" * 400, "1e999", "x"])
def test_no_option_takes_a_number_that_is_none(kind, value):
    specs = [*numeric_options(kind)]
    assert specs
    for spec in specs:
        if (spec, value) == ("lopt:horizon", "inf"):
            continue  # which is `opt`
        with pytest.raises(UserError, match=spec.partition(":")[2]) as told:
            USES[kind](f"{spec}={value}")
        assert "\n" not in str(told.value)


@pytest.mark.parametrize("spec", ["random:seed=-1", "constant:share=-1", "margin:loss=-1"])
def test_a_strategys_option_out_of_range_is_refused(spec):
    with pytest.raises(UserError, match=r"seed|share|loss"):
        load_strategy(spec)
