"""Where a result comes from."""

import re
import sys
from importlib.metadata import version

import pytest

from dwellmoe import provenance


def test_it_names_command_code_and_date(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["/somewhere/inference.py", "--input", "two words"])
    made = provenance.provenance()
    assert made["command"] == "inference.py --input 'two words'"
    assert re.fullmatch(r"commit [0-9a-f]{12}(, with changes)?|dwellmoe .+", made["code"])
    assert re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d UTC", made["date"])


@pytest.mark.parametrize("given", [["--hub_token", "hf_secret"], ["--hub_token=hf_secret"]])
def test_it_keeps_no_secret(given, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["main.py", *given, "--max_new_tokens", "8"])
    command = provenance.provenance()["command"]
    assert "hf_secret" not in command
    assert "--hub_token" in command and command.endswith("--max_new_tokens 8")


def test_outside_a_checkout_the_version_stands_for_the_code(monkeypatch, tmp_path):
    monkeypatch.setattr(provenance, "_CHECKOUT", tmp_path)
    assert provenance.provenance()["code"] == f"dwellmoe {version('dwellmoe')}"
