"""The report in words: what each variant gained in misses and bytes, and what that cost in quality."""

from collections.abc import Mapping
from typing import NamedTuple

from dwellmoe.evaluation.report.comparison import at_share
from dwellmoe.evaluation.report.summary import readable_bytes, summary_rows, three_digits

AGAINST_BASE = ("tuned_vs_base", "tuned-rerouted_vs_base", "control_vs_base")


def verdicts(report: Mapping) -> list[str]:
    """A sentence or two for each comparison; for one variant alone what it needs as it is.

    Where a control was measured (the same training without locality), the base says little and is left out.
    """
    left_out = AGAINST_BASE if "control" in report["variants"] else ()
    names = [name for name in report["comparison"] if name not in left_out]
    return [_comparison(report, name) for name in names] or [_alone(report)]


def _comparison(report: Mapping, name: str) -> str:
    one, other = name.split("_vs_")
    misses = _Change.of(report["comparison"][name], "lru_misses_25_ratio")
    perplexity = _Change.of(report["comparison"][name], "perplexity_ratio")
    return (
        f"{one} against {other}: {misses.verdict('memory traffic')}, {perplexity.verdict('text quality')}. "
        f"With {_cache(report)} misses are {misses.in_words('fewer', 'more')}{_bytes(report, one, other)}; "
        f"perplexity {perplexity.in_words('lower', 'higher')}."
    )


class _Change(NamedTuple):
    """A ratio of two variants in which less is better, and its 95 % interval."""

    ratio: float | None
    interval: list[float] | None

    @classmethod
    def of(cls, comparison: Mapping, name: str) -> "_Change":
        return cls(comparison[name], comparison[f"{name}_ci95"])

    def verdict(self, subject: str) -> str:
        """`better ...` or `worse ...` only where the interval does not hold 1."""
        if self.interval and self.interval[1] < 1:
            return f"better {subject}"
        if self.interval and self.interval[0] > 1:
            return f"worse {subject}"
        return f"no clear difference in {subject}"

    def in_words(self, less: str, more: str) -> str:
        if self.ratio is None:
            return "not measured"
        words = f"{abs(self.ratio - 1):.1%} {less if self.ratio < 1 else more} ({three_digits(self.ratio)}x"
        if self.interval is None:
            return f"{words}; too few requests for an interval)"
        return f"{words}, 95 % interval {three_digits(self.interval[0])} to {three_digits(self.interval[1])})"


def _bytes(report: Mapping, one: str, other: str) -> str:
    """What the cache then fetches for a token, where both variants were measured without re-routing."""
    rows = [at_share(report["cache"], variant=name, policy="lru") for name in (one, other)]
    if any(row is None or row["miss_bytes_per_token"] is None for row in rows):
        return ""
    first, second = (readable_bytes(row["miss_bytes_per_token"]) for row in rows if row)
    return f", {first} fetched for a token instead of {second}"


def _alone(report: Mapping) -> str:
    row = summary_rows(report)[0]
    if row["hit_rate"] is None:
        return f"{row['variant']}, measured alone: no decoded tokens, so no cache was simulated."
    return (
        f"{row['variant']}, measured alone: {_cache(report)} holds {row['hit_rate']:.1%} of the requested "
        f"experts, {readable_bytes(row['miss_bytes_per_token'])} fetched for a token; perplexity "
        f"{three_digits(row['perplexity'])}."
    )


def _cache(report: Mapping) -> str:
    """The cache whose misses are compared."""
    row = at_share(report["cache"], policy="lru")
    return f"an LRU cache of {row['capacity_percent']:.3g} % of the experts" if row else "a cache"
