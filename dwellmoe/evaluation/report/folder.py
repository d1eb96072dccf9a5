"""Knows where results go and that their files appear whole; does not know what is in them."""

import json
import os
from collections.abc import Mapping
from itertools import chain, count
from pathlib import Path
from typing import Any

REPORT = "report.json"


def choose_folder(wanted: Path, settings: dict[str, Any]) -> Path:
    """`wanted`, or `wanted-2`, `wanted-3`, ...: the first that holds no report made by other settings."""
    numbered = (wanted.with_name(f"{wanted.name}-{number}") for number in count(2))
    return next(folder for folder in chain([wanted], numbered) if _is_free(folder, settings))


def _is_free(folder: Path, settings: dict[str, Any]) -> bool:
    try:
        report = json.loads((folder / REPORT).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return True
    except (OSError, ValueError):
        return False
    return isinstance(report, dict) and report.get("settings") == json.loads(json.dumps(settings))


def write_json(path: Path, report: Mapping[str, Any]) -> None:
    """Writes `as_json(report)`; the file appears complete or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(path.name + ".partial")
    beside.write_text(as_json(report), encoding="utf-8")
    os.replace(beside, path)


def as_json(report: Mapping[str, Any]) -> str:
    """One JSON object, each row of a table (a list of objects) on its line: they may be thousands. No NaN."""
    entries = ",\n".join(f" {json.dumps(name)}: {_entry(value)}" for name, value in report.items())
    return f"{{\n{entries}\n}}\n"


def _entry(value: Any) -> str:
    if isinstance(value, list) and value and isinstance(value[0], dict):
        return "[\n  " + ",\n  ".join(json.dumps(row, allow_nan=False) for row in value) + "\n ]"
    return json.dumps(value, allow_nan=False)
