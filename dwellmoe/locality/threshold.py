"""Reads `--daft_threshold`, which selects the layers to train. Without torch."""

from dwellmoe.errors import UserError


def needs_profile(threshold: str) -> bool:
    """Whether the threshold can leave a layer out. Raises UserError if it is no number and no quantile."""
    if threshold.startswith("q"):
        return quantile(threshold) < 1
    try:
        value = float(threshold)
    except ValueError:
        value = float("nan")
    if not value > 0:
        raise UserError(f"--daft_threshold {threshold}: expected a number above 0, or a quantile such as q50")
    return value < 1


def quantile(threshold: str) -> float:
    if not threshold[1:].isdigit() or not 0 < int(threshold[1:]) <= 100:
        raise UserError(f"--daft_threshold {threshold}: a quantile is q1 to q100, e.g. q50")
    return int(threshold[1:]) / 100
