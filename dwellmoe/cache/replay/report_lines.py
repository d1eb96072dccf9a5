"""The reporting block in print: tables for people, plain or in Markdown."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from dwellmoe.cache.replay.negative_results import scope_of_results
from dwellmoe.cache.replay.texts import ENDS

UNKNOWN = "not recorded"
WEIGHTS_FACTS = (
    "file",
    "model",
    "source",
    "categories",
    "phase",
    "training_requests",
    "validation",
    "learns_while_running",
)


class Section(NamedTuple):
    """One table of the block."""

    title: str
    head: Sequence[str]
    rows: Sequence[Sequence[str]]


def sections(block: Mapping[str, Any]) -> list[Section]:
    """All tables of a block that `report_block` made."""
    return [
        _replay(block),
        _workload(block),
        *_texts(block),
        *_overlaps(block),
        _policies(block),
        *_fits(block),
        _gaps(block),
        *_negative_results(block),
        *_memory_equivalents(block),
    ]


def report_lines(block: Mapping[str, Any], markdown: bool = False) -> list[str]:
    """The block for a terminal, or in Markdown."""
    return [
        line for section in sections(block) for line in (_markdown(section) if markdown else _plain(section))
    ]


def _markdown(section: Section) -> list[str]:
    rows = [section.head, ["---"] * len(section.head), *section.rows]
    cells = [[cell.replace("|", "\\|") for cell in row] for row in rows]
    return [f"## {section.title}", "", *(f"| {' | '.join(row)} |" for row in cells), ""]


def _plain(section: Section) -> list[str]:
    rows = [section.head, *section.rows]
    widths = [max(len(row[column]) for row in rows) for column in range(len(section.head))]
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    ]
    return [section.title, *(f"  {line}" for line in lines), ""]


def _replay(block: Mapping[str, Any]) -> Section:
    facts = block["replay"]
    repeated = (
        f"{facts['repeated_accesses']} of {facts['accesses']} accesses, each counted, all but the first a hit"
    )
    rows = [
        ("unit of execution", f"{facts['unit']} (access {facts['access']})"),
        ("retention is decided", facts["retention"]),
        ("order inside a set", facts["order"]),
        ("scope", f"{facts['cache']} (scope {facts['scope']})"),
        ("remainder of a budget", facts["remainder"]),
        ("phase, start, reset", f"{facts['phase']}, {facts['start']}, {facts['reset']}"),
        ("denominator of misses", f"{facts['denominator']}; {facts['accesses']} here"),
        ("expert named again in a step", repeated),
        ("order of requests", "as recorded; no best of several orders or batches is taken"),
        (
            "conformance trace, LRU",
            f"{facts['conformance_hits']} hits, {facts['conformance_misses']} misses, "
            f"{facts['conformance_first_uses']} of them first uses (expected 12, 18, 12)",
        ),
    ]
    return Section("Replay", ("", "rule"), rows)


def _workload(block: Mapping[str, Any]) -> Section:
    facts = block["workload"]
    template = {True: "used", False: "not used", None: UNKNOWN}[facts["chat_template"]]
    beyond = facts["requests_beyond_shared_prefix"]
    order = "rows of several requests alternate" if facts["interleaved"] else "one request after the other"
    together = f"{facts['rows_together_mean']:.2f} rows in the mean, {facts['rows_together_most']} at most"
    lock_step = together if facts["lock_step_recorded"] else f"{UNKNOWN}; replayed with {together}"
    median, most = (facts[f"decode_steps_a_request_{name}"] for name in ("median", "most"))
    rows = [
        ("model", _known(facts["model"])),
        ("text", _known(facts["source"])),
        ("requests", str(facts["requests"])),
        ("chat template", template),
        ("decode steps", f"{facts['decode_steps']}; of a request {median:g} in the median, {most} at most"),
        ("requests that decode beyond a prefix shared with another", _known(beyond)),
        ("service discipline", order),
        ("requests in lock step", lock_step),
    ]
    return Section("Workload", ("", "value"), rows)


def _known(value: Any) -> str:
    return UNKNOWN if value is None else str(value)


def _texts(block: Mapping[str, Any]) -> list[Section]:
    title = f"Texts (prefix, ending: first and last {ENDS} tokens of a prompt; template: both together)"
    if block["texts"] is None:
        return [Section(title, ("", "value"), [("prompts and decoded texts", UNKNOWN)])]
    names = (
        "requests",
        "prompts",
        "prefixes",
        "endings",
        "templates",
        "decoded_texts",
        "distinct_decoded_texts",
    )
    head = ("category", *(name.replace("_", " ") for name in names), "tokens that agree by position")
    rows = [
        (row["category"], *(str(row[name]) for name in names), _number(row["positional_agreement"]))
        for row in block["texts"]
    ]
    if len(block["texts"]) == 1:
        rows += [(f"by category: {UNKNOWN}", *[""] * (len(head) - 1))]
    return [Section(title, head, rows)]


def _overlaps(block: Mapping[str, Any]) -> list[Section]:
    found = block["workload"]["pairs"]
    kinds = (("within", "of one category"), ("across", "of two categories"))
    pairs = [(label, UNKNOWN, UNKNOWN) for _, label in kinds]
    if found is not None:
        pairs = [
            (label, str(found[kind]["pairs"]), _or(found[kind]["overlap"], "no such pair"))
            for kind, label in kinds
        ]
    bands = [
        (f"{row['from']} to {'the end' if row['below'] is None else row['below'] - 1}", str(row["tokens"]),
         _or(row["overlap_with_first"], "-"))
        for row in block["workload"]["bands"]
    ]  # fmt: skip
    return [
        Section(
            "Overlap of experts, texts that hardly share words",
            ("pairs of requests", "pairs", "overlap"),
            pairs,
        ),
        Section("Stability over positions", ("position", "tokens", "overlap with the first band"), bands),
    ]


def _policies(block: Mapping[str, Any]) -> Section:
    head = (
        *(
            "policy",
            "slots",
            "distinct / capacity: mean, p95, share above 1",
            "hit rate",
            "95 % interval",
            "misses",
            "first uses",
        ),
        *(
            "misses a step and layer: p50, p95, p99",
            "bytes a token",
            "of LRU's gap",
            "of LFRU's gap",
        ),
    )
    regimes = {row["capacity"]: row for row in block["regime"]}
    return Section("Policies", head, [_policy(row, regimes[row["capacity"]]) for row in block["policies"]])


def _policy(row: Mapping[str, Any], regime: Mapping[str, Any]) -> list[str]:
    ratios = [regime[f"distinct_over_capacity_{name}"] for name in ("mean", "p95", "share_above_1")]
    return [
        row["policy"],
        f"{row['capacity']} ({row['capacity_percent']:.4g} %)",
        ", ".join(f"{ratio:.3f}" for ratio in ratios),
        _number(row["hit_rate"]),
        _interval(row["hit_rate_ci95"]),
        str(row["misses"]),
        str(row["compulsory_misses"]),
        ", ".join(str(row[f"step_misses_{name}"]) for name in ("p50", "p95", "p99")),
        UNKNOWN if row["miss_bytes_per_token"] is None else f"{row['miss_bytes_per_token']:.0f}",
        *(_number(row["gap_shares"].get(name)) for name in ("lru", "lfru")),
    ]


def _fits(block: Mapping[str, Any]) -> list[Section]:
    fitted = {row["policy"]: row["fit_source"] for row in block["policies"] if row["fit_source"] is not None}
    head = ("policy", *(name.replace("_", " ") for name in WEIGHTS_FACTS))
    rows = [
        (policy, *(source.get(name) or UNKNOWN for name in WEIGHTS_FACTS))
        for policy, source in fitted.items()
    ]
    title = "What policies were fitted to (first loads count as misses and are the first uses above)"
    return [Section(title, head, rows)] if rows else []


def _gaps(block: Mapping[str, Any]) -> Section:
    title = "Gap to the optimum: opt - opt_forced (experts that pass through) and opt_forced - best policy"
    if block["replay"]["access"] == "atomic":
        title += "; with atomic access none passes through"
    head = (
        "slots",
        "best policy without the future",
        "its gap to opt",
        "by passing through",
        "by the future",
        "bytes a token",
    )
    rows = [
        (
            str(row["capacity"]),
            row["best_online"],
            *(_number(row[name]) for name in ("gap", "by_passing_through", "by_the_future")),
            UNKNOWN if row["gap_bytes_per_token"] is None else f"{row['gap_bytes_per_token']:.0f}",
        )
        for row in block["gaps"]
    ]
    return Section(title, head, rows)


def _negative_results(block: Mapping[str, Any]) -> list[Section]:
    title = "Negative results: policies not shown to miss less than a simple one, by the same requests"
    head = ("policy", "slots", "against", "misses of it", "95 % interval", "found")
    rows = [
        (
            row["policy"],
            str(row["capacity"]),
            row["against"],
            f"{row['ratio']:.4f}x",
            _interval(row["ratio_ci95"]),
            row["found"],
        )
        for row in block["negative_results"]
    ]
    if not rows:
        return [Section(title, ("", "value"), [("negative results", "none")])]
    scope = Section("What the negative results hold for", ("", "value"), scope_of_results(block, UNKNOWN))
    return [Section(title, head, rows), scope]


def _memory_equivalents(block: Mapping[str, Any]) -> list[Section]:
    """Absent where the trace was compared with no other one."""
    if not block.get("memory_equivalents"):
        return []
    other = block["compared_with"] or "the other trace"
    head = ("policy", "slots", f"slots that {other} needs", "worth in cache", "95 % interval")
    rows = [
        (
            row["policy"],
            str(row["capacity"]),
            f"{row['equivalent_capacity']:.2f}",
            f"{row['bound'] + ' ' if row['bound'] else ''}{row['ratio']:.3f}x",
            _interval(row["ratio_ci95"]),
        )
        for row in block["memory_equivalents"]
    ]
    return [Section(f"Memory equivalent: the cache with which {other} misses as seldom", head, rows)]


def _interval(edges: Sequence[float] | None) -> str:
    return "-" if edges is None else f"{edges[0]:.4f} to {edges[1]:.4f}"


def _number(value: float | None) -> str:
    return _or(value, "-")


def _or(value: float | None, other: str) -> str:
    return other if value is None else f"{value:.4f}"
