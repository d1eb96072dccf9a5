"""The scripts of docs/figures draw their figures, from traces or from nothing."""

import runpy
import sys
from pathlib import Path

import numpy as np
import pytest

import dwellmoe as dm
from dwellmoe.cache.trace import DECODE
from tests.docs.pages import ROOT

FIGURES = ROOT / "docs" / "figures"
PNG = b"\x89PNG"


def _run(name: str, *words: object, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", [name, *map(str, words)])
    runpy.run_path(str(FIGURES / name), run_name="__main__")


def _trace(path: Path, layers: int = 2, experts: int = 8, seed: int = 0) -> Path:
    """Three requests of 5, 9 and 7 tokens, two experts each."""
    rng = np.random.default_rng(seed)
    request = np.repeat(np.arange(3, dtype=np.int32), (5, 9, 7))
    chosen = [[rng.permutation(experts)[:2] for _ in range(layers)] for _ in request]
    trace = dm.RoutingTrace(
        np.array(chosen, np.uint16),
        phase=np.full(len(request), DECODE, np.uint8),
        request=request,
        num_experts=experts,
    )
    trace.save(path)
    return path


def test_the_figure_of_readme_is_drawn_from_two_traces(tmp_path, monkeypatch, capsys):
    before = _trace(tmp_path / "before.safetensors")
    after = _trace(tmp_path / "after.safetensors", seed=1)
    out = tmp_path / "figure.png"
    _run(
        *("routing_before_after.py", "--before", before, "--after", after, "--out", out),
        monkeypatch=monkeypatch,
    )
    assert out.read_bytes().startswith(PNG)
    assert "request 1" in capsys.readouterr().out  # the one with the longest answer


def test_a_switch_is_an_expert_that_the_token_before_did_without():
    switched = runpy.run_path(str(FIGURES / "routing_before_after.py"))["switched"]
    found = switched(np.array([[0, 1], [1, 2], [2, 1], [3, 1]]))
    assert found.tolist() == [[True, True], [False, True], [False, False], [True, False]]


def test_the_three_tiers_are_drawn(tmp_path, monkeypatch):
    _run("three_tiers.py", tmp_path / "tiers.png", monkeypatch=monkeypatch)
    assert (tmp_path / "tiers.png").read_bytes().startswith(PNG)
