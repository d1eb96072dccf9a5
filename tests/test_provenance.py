"""Where a result comes from."""

import re
import sys
from importlib.metadata import version

from dwellmoe import provenance


def test_it_names_command_code_and_date(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["/somewhere/inference.py", "--input", "two words"])
    made = provenance.provenance()
    assert made["command"] == "inference.py --input 'two words'"
    assert re.fullmatch(r"commit [0-9a-f]{12}(, with changes)?|dwellmoe .+", made["code"])
    assert re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d UTC", made["date"])


def test_outside_a_checkout_the_version_stands_for_the_code(monkeypatch, tmp_path):
    monkeypatch.setattr(provenance, "_CHECKOUT", tmp_path)
    assert provenance.provenance()["code"] == f"dwellmoe {version('dwellmoe')}"
