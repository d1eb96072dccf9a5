"""Advice in plain words: each sentence stands beside the number it follows from; assumptions come last."""

from collections.abc import Iterator

from dwellmoe.cache.device import GIGA
from dwellmoe.cache.replay.advise import BASELINE, LOW_BITS, NEARLY, TRAINING, Advice, Change

TRAINED = "training for locality"
WORTH_SAYING = 1.02
"""A change that adds less to the speed is not called a help."""
FEW_TOKENS = 256
"""Decoded tokens below which a trace says little."""
NEXT = {
    "int8": "dwellmoe lm-eval --expert_format int8",
    "int4": "dwellmoe lm-eval --expert_format int4",
    "re-routing": "dwellmoe lm-eval --routing_strategy margin",
    TRAINED: "python main.py",
}
"""Change -> what measures its quality, or makes it."""


def advice_lines(found: Advice) -> list[str]:
    """The advice for people."""
    return [_about(found), "", *_budget(found), *_policy(found), *_most(found), "", *_assumptions(found)]


def _about(found: Advice) -> str:
    return (
        f"{found.model or 'unnamed model'} on {found.device.name}: {found.layers} layers x {found.experts} "
        "experts, "
        f"K = {found.top_k}; {found.decode_tokens} decoded tokens of {found.requests} requests, ECR "
        f"{found.ecr:.3f} "
        f"(chance {found.chance_ecr:.3f})"
    )


def _budget(found: Advice) -> Iterator[str]:
    row, resident = found.budget, f"{found.resident_bytes / GIGA:.3f} GB of other weights"
    if row is None:
        yield (
            f"Budget: none fits. The smallest cache, {found.smallest.capacity} experts a layer, takes "
            f"{found.smallest.memory_bytes / GIGA:.3f} GB with {resident}; the device has "
            f"{found.device.memory_gb:g} GB."
        )
    elif found.all_fit:
        limit = (
            "the profile states no memory"
            if found.device.memory_gb is None
            else f"{found.device.memory_gb:g} GB"
        )
        yield (
            f"Budget: all experts fit ({row.memory_bytes / GIGA:.3f} GB with {resident}; {limit}): keep them "
            "in memory, no "
            f"cache is needed. At most {found.tokens_per_second_without_misses:.2f} tokens/s."
        )
    else:
        yield (
            f"Budget: {row.capacity} experts a layer ({row.capacity_percent:.1f} %, "
            f"{row.capacity_bytes / GIGA:.3f} GB) are "
            f"the most that fit beside {resident}. With {BASELINE}: hit rate {row.hit_rate:.4f}, "
            f"{row.miss_bytes_per_token / 1e6:.2f} MB fetched a token, at most {row.tokens_per_second:.2f} "
            "tokens/s "
            f"({found.tokens_per_second_without_misses:.2f} if nothing missed)."
        )
        if found.nearly and found.nearly.capacity < row.capacity:
            yield (
                f"  {found.nearly.capacity} experts a layer ({found.nearly.capacity_bytes / GIGA:.3f} GB) "
                "already reach "
                f"{found.nearly.tokens_per_second:.2f} tokens/s, at least {NEARLY:.0%} of that."
            )


def _policy(found: Advice) -> Iterator[str]:
    if not found.policies:
        return
    bound = f"the optimum, which knows the future, hits {found.optimum_hit_rate:.4f}: no policy can hit more"
    if found.best_policy != BASELINE:
        row = next(row for row in found.policies if row.policy == found.best_policy)
        low, high = (100 * (1 - edge) for edge in reversed(row.ratio_ci95 or ()))
        yield (
            f"Policy: {row.policy}: {100 * (1 - row.ratio):.1f} % fewer misses than {BASELINE} (95 %: "
            f"{low:.1f} to "
            f"{high:.1f}), hit rate {row.hit_rate:.4f}; {bound}."
        )
        return
    least = min(found.policies, key=lambda row: row.ratio)
    why = (
        "with one request no difference can be told from chance"
        if least.ratio_ci95 is None
        else "no other is better beyond chance over requests (the nearest, "
        f"{least.policy}: {least.ratio:.3f}x the misses, "
        f"95 %: {least.ratio_ci95[0]:.3f} to {least.ratio_ci95[1]:.3f})"
    )
    yield f"Policy: {BASELINE}: {why}; {bound}."


def _most(found: Advice) -> Iterator[str]:
    known = [change for change in found.changes if change.source != "assumed"]
    if found.budget is None:
        yield from _what_fits(known)
        return
    now = found.budget.tokens_per_second
    yield "What would help (against that cache):" if not found.all_fit else "What would help:"
    yield from map(_line, found.changes)
    if found.all_fit:
        yield "  training for locality, re-routing: nothing, for no expert is missed after its first use"
    best = max(known, key=lambda change: change.tokens_per_second, default=None)
    if found.all_fit:
        yield _all_fit_verdict(best, now)
    else:
        yield _verdict(found, best, now)


def _what_fits(known: list[Change]) -> Iterator[str]:
    yield "What would help:"
    yield from map(_line, known)
    if known:
        names = " or ".join(change.name for change in known)
        yield f"Most: experts in {names}: without that no cache fits. Measure: {NEXT[known[-1].name]}"
    else:
        yield "Most: nothing here makes it fit: more memory, or fewer other weights."


def _line(change: Change) -> str:
    worth = (
        ""
        if change.worth_capacity is None
        else f", worth {change.worth_capacity:.1f} experts a layer of {BASELINE}"
    )
    return (
        f"  {change.name} ({change.source}): {change.capacity} experts a layer, "
        f"{change.misses_per_token:.2f} misses and "
        f"{change.miss_bytes_per_token / 1e6:.2f} MB a token, at most {change.tokens_per_second:.2f} "
        f"tokens/s{worth}"
    )


def _all_fit_verdict(best: Change | None, now: float) -> str:
    if best is None or best.tokens_per_second < WORTH_SAYING * now:
        return "Most: none of these adds 2 % to the speed."
    return f"Most: {best.name}, for a token then reads fewer bytes from memory. Measure: {NEXT[best.name]}"


def _verdict(found: Advice, best: Change | None, now: float) -> str:
    """Which change helps most, where the numbers decide it; else what decides it."""
    trained = sorted(change.tokens_per_second for change in found.changes if change.source == "assumed")
    least, most = trained[0], trained[-1]
    known = best.tokens_per_second if best else 0.0
    if max(known, most) < WORTH_SAYING * now:
        return "Most: none of these adds 2 % to the speed: misses are not what limits this device."
    if best is None or known < least:
        return f"Most: {TRAINED}, even at the smaller effect ({least:.2f} tokens/s). Try: {NEXT[TRAINED]}"
    needed = _misses_to_match(found, known)
    match = (
        f"{TRAINED} cannot match it, for even without any miss the speed is at most "
        f"{found.tokens_per_second_without_misses:.2f} tokens/s"
        if needed <= 0
        else f"{TRAINED} would have to bring misses to {needed:.2f}x to match it"
    )
    if known > most:
        return (
            f"Most: {best.name}, {known:.2f} tokens/s against {now:.2f}; {match}. Measure: {NEXT[best.name]}"
        )
    return (
        f"Most: {best.name} or {TRAINED}, which this trace cannot decide: {best.name} gives {known:.2f} "
        f"tokens/s, and {match}. "
        f"Measure: {NEXT[best.name]}; try: {NEXT[TRAINED]}"
    )


def _misses_to_match(found: Advice, tokens_per_second: float) -> float:
    """The misses over those of today at which the baseline is as fast; 0 or less where it never is."""
    assert found.budget is not None
    floor = 1 / found.tokens_per_second_without_misses
    return (1 / tokens_per_second - floor) / (1 / found.budget.tokens_per_second - floor)


def _assumptions(found: Advice) -> Iterator[str]:
    yield "Assumed:"
    yield "  speeds are upper bounds by the profile's bandwidths; nothing overlaps, no KV cache is counted"
    yield (
        f"  your texts route as this trace does; caches start cold: {found.compulsory_share:.0%} of the "
        "misses are first "
        "uses, of which a longer run has fewer"
    )
    if found.decode_tokens < FEW_TOKENS:
        yield f"  {found.decode_tokens} decoded tokens are few: record more before you decide"
    yield (
        f"  experts as recorded have {found.expert_bits:g} bits a weight (--expert_bits); in low bits they "
        "have "
        f"{', '.join(f'{name} {bits:g}' for name, bits in LOW_BITS.items())} with scales, and route alike"
    )
    if any(change.source == "assumed" for change in found.changes):
        ratios = ", ".join(f"{ratio}x ({where})" for where, ratio in TRAINING.items())
        yield (
            f"  training: no trace tells; misses were {ratios}: models/tiny-olmoe at 25 %, ReMoE on "
            "DeepSeek-V2-Lite at C = K"
        )
    if any(change.name == "re-routing" for change in found.changes):
        yield "  re-routing: recorded distributions stay, though a changed choice changes what follows"
    elif not found.all_fit and found.budget is not None:
        yield (
            "  re-routing: not replayed, for the trace lacks the routers' distributions (dwellmoe record "
            "--gate_probs, or "
            "router logits)"
        )
    yield "  what any of this costs in quality is not in a trace"
