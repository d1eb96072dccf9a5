"""The report in words: what each variant gained in misses and bytes, and what that cost in quality."""

from collections.abc import Mapping
from typing import NamedTuple

from dwellmoe.evaluation.report.comparison import at_share
from dwellmoe.evaluation.report.summary import readable_bytes, summary_rows, three_digits

AGAINST_BASE = ("tuned_vs_base", "tuned-rerouted_vs_base", "control_vs_base")
NOT_FINITE = "not a finite number"


class Verdict(NamedTuple):
    """What a reader should remember of a comparison, and the numbers behind it."""

    headline: str
    numbers: str


def verdicts(report: Mapping) -> list[Verdict]:
    """A verdict for each comparison; for one variant alone what it needs as it is.

    Where a control was measured (the same training without locality), the base says little and is left out.
    """
    left_out = AGAINST_BASE if "control" in report["variants"] else ()
    names = [name for name in report["comparison"] if name not in left_out]
    return [_comparison(report, name) for name in names] or [_alone(report)]


def _comparison(report: Mapping, name: str) -> Verdict:
    one, other = name.split("_vs_")
    misses = _Change.of(report["comparison"][name], "lru_misses_25_ratio")
    perplexity = _Change.of(report["comparison"][name], "perplexity_ratio")
    no_misses = f"not compared, since {other} has none" if report["cache"] else "not measured"
    return Verdict(
        f"{one} against {other}: {misses.verdict('memory traffic')}, {perplexity.verdict('text quality')}.",
        f"With {_cache(report)} misses are {misses.in_words('fewer', 'more', unknown=no_misses)}"
        f"{_bytes(report, one, other)}{_worth(report['comparison'][name], other)}; "
        f"perplexity is {perplexity.in_words('lower', 'higher', unknown=NOT_FINITE)}.",
    )


class _Change(NamedTuple):
    """A ratio of two variants in which less is better, and its 95 % interval, both as they are shown."""

    ratio: float | None
    interval: list[float] | None

    @classmethod
    def of(cls, comparison: Mapping, name: str) -> "_Change":
        """Rounded to the digits that are shown: a difference which they do not show is none."""
        ratio, interval = comparison[name], comparison[f"{name}_ci95"]
        return cls(
            None if ratio is None else round(ratio, 3), interval and [round(edge, 3) for edge in interval]
        )

    def verdict(self, subject: str) -> str:
        """`better ...` or `worse ...` only where the interval does not hold 1."""
        if self.ratio is None:
            return f"{subject} not compared"
        if self.interval is None:
            return f"{subject} not judged, for want of an interval"
        if self.interval[1] < 1:
            return f"better {subject}"
        if self.interval[0] > 1:
            return f"worse {subject}"
        return f"no clear difference in {subject}"

    def in_words(self, less: str, more: str, unknown: str) -> str:
        """`33.8 % fewer (0.662x, 95 % interval 0.650 to 0.670)`; `unknown` without a ratio."""
        if self.ratio is None:
            return unknown
        if self.interval is None:
            return f"{self._change(less, more)} ({three_digits(self.ratio)}x, no interval)"
        low, high = map(three_digits, self.interval)
        return f"{self._change(less, more)} ({three_digits(self.ratio)}x, 95 % interval {low} to {high})"

    def _change(self, less: str, more: str) -> str:
        if self.ratio is None or self.ratio == 1:
            return "the same"
        percent = 100 * abs(self.ratio - 1)
        return f"{percent:{'.1f' if percent < 100 else '.3g'}} % {less if self.ratio < 1 else more}"


def _bytes(report: Mapping, one: str, other: str) -> str:
    """What the cache fetches for a token with each variant."""
    rows = [at_share(report["cache"], variant=name, policy="lru") for name in (one, other)]
    if any(row is None or row["miss_bytes_per_token"] is None for row in rows):
        return ""
    first, second = (readable_bytes(row["miss_bytes_per_token"]) for row in rows if row)
    return f", {first} fetched for a token instead of {second}"


def _worth(comparison: Mapping, other: str) -> str:
    """The cache that the other variant needs to miss as seldom."""
    ratio, interval = (comparison.get(f"memory_equivalent_25{part}") for part in ("", "_ci95"))
    if ratio is None:
        return ""
    bound = comparison["memory_equivalent_25_bound"]
    span = f" (95 % interval {' to '.join(map(three_digits, interval))})" if interval and not bound else ""
    size = f"{bound + ' ' if bound else ''}{three_digits(ratio)}x the cache"
    return f"; to miss as seldom, {other} needs {size}{span}"


def _alone(report: Mapping) -> Verdict:
    row = summary_rows(report)[0]
    headline = f"{row['variant']} was measured alone: nothing to compare with."
    perplexity = three_digits(row["perplexity"]) if row["perplexity"] is not None else NOT_FINITE
    if row["hit_rate"] is None:
        return Verdict(headline, f"No decoded tokens, so no cache was simulated; perplexity is {perplexity}.")
    return Verdict(
        headline,
        f"With {_cache(report)} {100 * row['hit_rate']:.1f} % of the requested experts are in the cache, and "
        f"{readable_bytes(row['miss_bytes_per_token'])} are fetched for a token; perplexity is {perplexity}.",
    )


def _cache(report: Mapping) -> str:
    """The cache whose misses are compared."""
    row = at_share(report["cache"], policy="lru")
    return f"an LRU cache of {row['capacity_percent']:.3g} % of the experts" if row else "a cache"
