"""Tools that a run logs to: what they lack is found before a model is loaded."""

import importlib.util
import sys
from types import SimpleNamespace
from typing import Any

import pytest

import config
from dwellmoe.errors import UserError


def check(*names):
    settings: Any = SimpleNamespace(report_to=[*names])
    config._check_reporters(settings)


@pytest.mark.parametrize("name", ["wandb", "mlflow"])
def test_a_package_that_is_missing_is_named(name):
    if importlib.util.find_spec(name):
        pytest.skip(f"{name} is installed")
    with pytest.raises(UserError, match=f"--report_to: .*{name}"):
        check(name)


@pytest.mark.parametrize(
    ("has_key", "mode", "refused"),
    [(False, "online", True), (True, "online", False), (False, "offline", False)],
)
def test_wandb_needs_a_key_unless_it_sends_nothing(monkeypatch, has_key, mode, refused):
    """With a stand-in for the package, whose `login` answers whether there is a key."""
    asked = SimpleNamespace(login=lambda prompt: has_key)
    monkeypatch.setitem(sys.modules, "wandb", asked)
    monkeypatch.setattr(config, "get_reporting_integration_callbacks", lambda names: [])
    monkeypatch.setenv("WANDB_MODE", mode)
    if refused:
        with pytest.raises(UserError, match="WANDB_API_KEY"):
            check("wandb")
    else:
        check("wandb")
