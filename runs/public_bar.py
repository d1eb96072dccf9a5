"""Says whether fine-tuning reaches the bar that arXiv 2608.18261 set in advance, from a report of each seed.

    python runs/public_bar.py results/public_bar/seed-*/report.json

The bar: at least 30 % fewer LRU misses at 25 % of the experts for at most 1 % more perplexity. It is asked of
tuned against control, the same fine-tuning without locality, on identical reference tokens.
"""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from statistics import mean
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from dwellmoe.errors import UserError, run_command

MISSES_AT_MOST, PERPLEXITY_AT_MOST = 0.70, 1.01
BAR = "30 % fewer LRU misses at 25 % for at most 1 % more perplexity"
HEAD = "| seed | held-out requests | LRU misses, 25 % | perplexity | bar |\n|---|---|---|---|---|"


class Interval(NamedTuple):
    """A ratio of tuned to control with its 95 % interval."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.3f}x ({self.low:.3f}-{self.high:.3f})"


class Row(NamedTuple):
    """Tuned against control, of one seed or of all."""

    name: str
    requests: int
    misses: Interval
    perplexity: Interval

    @property
    def reached(self) -> bool:
        return self.misses.value <= MISSES_AT_MOST and self.perplexity.value <= PERPLEXITY_AT_MOST

    @property
    def reached_by_intervals(self) -> bool:
        """Whether the worse ends of both intervals reach it, too."""
        return self.misses.high <= MISSES_AT_MOST and self.perplexity.high <= PERPLEXITY_AT_MOST

    def __str__(self) -> str:
        verdict = "reached" if self.reached else "not reached"
        return f"| {self.name} | {self.requests:,} | {self.misses} | {self.perplexity} | {verdict} |"


def row_of(path: Path) -> Row:
    """The row of a report of inference.py. Raises UserError for one without a control."""
    report = json.loads(path.read_text())
    compared = report["comparison"].get("tuned_vs_control")
    if compared is None:
        raise UserError(f"{path}: compares no tuned model with a control (--control_path of inference.py)")
    misses, perplexity = (_interval(path, compared, name) for name in ("lru_misses_25", "perplexity"))
    return Row(path.parent.name.removeprefix("seed-"), report["data"]["requests"], misses, perplexity)


def _interval(path: Path, compared: dict, name: str) -> Interval:
    value, ends = compared[f"{name}_ratio"], compared[f"{name}_ratio_ci95"]
    if value is None or ends is None:
        raise UserError(f"{path}: {name}_ratio has no value or no interval; evaluate more requests")
    return Interval(value, *ends)


def of_all_seeds(rows: Sequence[Row]) -> Row:
    """Means of the seeds, and the span of their intervals."""
    return Row(
        "mean",
        rows[0].requests,
        _spanned([row.misses for row in rows]),
        _spanned([row.perplexity for row in rows]),
    )


def _spanned(found: Sequence[Interval]) -> Interval:
    values, lows, highs = zip(*found, strict=True)
    return Interval(mean(values), min(lows), max(highs))


def verdict(rows: Sequence[Row]) -> str:
    """Reached if every seed reaches it."""
    reached, by_intervals = (
        sum(getattr(row, name) for row in rows) for name in ("reached", "reached_by_intervals")
    )
    return (
        f"{BAR}: {'reached' if reached == len(rows) else 'not reached'} ({reached} of {len(rows)} seeds, "
        f"{by_intervals} with both whole intervals)"
    )


def main() -> None:
    if not (paths := [Path(word) for word in sys.argv[1:]]):
        raise UserError("give the report.json of each seed")
    rows = [row_of(path) for path in paths]
    shown = [*rows, of_all_seeds(rows)] if len(rows) > 1 else rows
    print(HEAD, *shown, verdict(rows), sep="\n")


if __name__ == "__main__":
    run_command(main)
