"""The folder and the file that results are written to: chosen and tried before any work. Without torch."""

import json
from itertools import chain, count
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

from dwellmoe.adapter_folder import BASE
from dwellmoe.errors import UserError
from dwellmoe.evaluation.options import Options
from dwellmoe.files import check_writable

REPORT = "report.json"
OTHER_FOLDER = "choose another --results_dir"


def results_folder(options: Options, task_name: str) -> Path:
    """The folder of an evaluation's report, as given or by default."""
    if options.evaluation.results_dir:
        return Path(options.evaluation.results_dir)
    names = [_label(Path(path)) for path in options.adapters.values()] or [BASE]
    return Path(f"./results{options.model.model_key}") / "-".join([task_name, *names])


def _label(adapter: Path) -> str:
    """An adapter's folder name; for a checkpoint with the name of its run."""
    path = adapter.resolve()
    return f"{path.parent.name}-{path.name}" if path.name.startswith("checkpoint-") else path.name


def choose_folder(wanted: Path, settings: dict[str, Any]) -> Path:
    """`wanted`, or `wanted-2`, `wanted-3`, ...: the first without a report of other settings.

    Raises UserError where the folder cannot be.
    """
    numbered = (wanted.with_name(f"{wanted.name}-{number}") for number in count(2))
    return next(folder for folder in chain([wanted], numbered) if _is_free(folder, settings))


def _is_free(folder: Path, settings: dict[str, Any]) -> bool:
    try:
        report = json.loads((folder / REPORT).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return True
    except (IsADirectoryError, ValueError, RecursionError):
        return False
    except OSError as error:  # of the folder, not of what is in it: it would be the same with every number
        raise UserError(f"results folder '{folder}': {error.strerror}") from None
    return isinstance(report, dict) and report.get("settings") == json.loads(json.dumps(settings))


def check_outputs(folder: Path, json_path: str | None) -> None:
    """Makes the folder of the results, and raises UserError where it, or the file of `--json`, cannot be
    written: better before long work than after it.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with TemporaryFile(dir=folder) as file:
            file.write(b"0")
    except OSError as error:
        raise UserError(f"results folder '{folder}': {error.strerror}") from None
    check_json(json_path)


def check_json(path: str | None) -> None:
    """Makes the folder of the file of `--json`. Raises UserError where the file cannot be written."""
    if not path or path == "-":
        return
    try:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
    except FileExistsError:
        raise UserError(f"--json {path}: '{Path(path).parent}' is not a folder") from None
    except OSError as error:
        raise UserError(f"--json {path}: {error.strerror}") from None
    check_writable(path)
