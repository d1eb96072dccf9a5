"""Reads the validation losses of a control run, which a budget of loss is counted from."""

import json
from pathlib import Path

from dwellmoe.errors import UserError


def control_losses(folder: str) -> list[tuple[int, float]]:
    """(step, validation loss) of the finished training run in `folder`. Raises UserError where there is
    none.
    """
    path = Path(folder) / "training_summary.json"
    try:
        summary = json.loads(path.read_text(encoding="utf-8"))
        entries = [entry for entry in summary["log_history"] if "eval_lm_loss" in entry]
        losses = {entry["step"]: float(entry["eval_lm_loss"]) for entry in entries}
    except (OSError, ValueError, KeyError, TypeError):
        raise UserError(f"--quality_reference {folder}: no readable training_summary.json there") from None
    if not losses:
        raise UserError(f"--quality_reference {folder}: the run never validated")
    return sorted(losses.items())
