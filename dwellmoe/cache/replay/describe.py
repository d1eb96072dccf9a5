"""The description of a trace's locality that `dwellmoe simulate describe` prints."""

from dwellmoe.cache.access import check_phase
from dwellmoe.cache.metrics import locality_row
from dwellmoe.cache.progress import Progress
from dwellmoe.cache.replay.prompt_pool import prompt_pool_rows
from dwellmoe.cache.replay.reuse import describe_reuse, segment_coverage
from dwellmoe.cache.trace import DECODE, PREFILL, RoutingTrace
from dwellmoe.errors import UserError

CACHE_RATIOS = (1.0, 1.5, 2.0, 3.0, 4.0)  # SCH: times K experts; 1 is SRP


def describe(
    trace: RoutingTrace, phase: str = "decode", segment_tokens: int = 16, progress: Progress | None = None
) -> dict:
    """Facts of the trace, its locality row, reuse, SRP and SCH, prompts' pools, as one JSON object."""
    check_phase(phase)
    if segment_tokens < 1:
        raise UserError(f"segment_tokens must be at least 1, got {segment_tokens}")
    coverage = [row.as_dict() for row in segment_coverage(trace, segment_tokens, CACHE_RATIOS, phase)]
    return {
        "trace": describe_facts(trace),
        "locality": [locality_row(trace, phase).as_dict()],
        "reuse": describe_reuse(trace, phase, progress),
        "srp": next(iter(coverage), {"segment_tokens": segment_tokens, "rho": 1.0, "value": None}),
        "sch": coverage,
        "prompt_pool": [row.as_dict() for row in prompt_pool_rows(trace)],
    }


def describe_facts(trace: RoutingTrace) -> dict:
    """What a trace holds, as one JSON object."""
    return {
        "model": trace.model,
        "source": trace.source,
        "layers": trace.layers,
        "experts": trace.num_experts,
        "top_k": trace.top_k,
        "prefill_tokens": int((trace.phase == PREFILL).sum()),
        "decode_tokens": int((trace.phase == DECODE).sum()),
        "requests": len(set(trace.request.tolist())),
        "all_expert_bytes": sum(trace.expert_bytes) * trace.num_experts or None,
    }


def description_lines(found: dict) -> list[str]:
    """A description for people."""
    row, reuse = found["locality"][0], found["reuse"]
    gds = "" if row["gds"] is None else f", GDS {row['gds']:.4f}"
    lines = [
        *facts_lines(found["trace"]),
        f"{row['phase']}: ECR {row['ecr']:.4f} (chance {row['chance_ecr']:.4f}), LAL {row['lal']:.4f}{gds}",
    ]
    if found["srp"]["value"] is not None:
        best = ", ".join(f"{entry['rho']:g}K {entry['value']:.3f}" for entry in found["sch"])
        lines.append(
            f"best hit rate of a segment of {found['srp']['segment_tokens']} tokens (SRP = 1K): {best}"
        )
    lines.append("share of uses covered by")
    for entry in reuse["recency"]:
        size = f"  the last {entry['tokens']:3d} tokens' experts ({entry['percent']:5.1f} %)"
        lines.append(
            f"{size}: {entry['covered']:.3f}; a fixed hot set as large: {entry['hot_set_of_that_size']:.3f}"
        )
    if pools := found["prompt_pool"]:
        sizes = ", ".join(f"{row['capacity']} experts {row['outside']:.3f}" for row in pools)
        lines.append(f"share of decode accesses outside the experts that the prompt used most: {sizes}")
    return [*lines, f"the method that helps this model more: {reuse['method']}"]


def facts_lines(facts: dict) -> list[str]:
    """What a trace holds, for people."""
    model = facts["model"] or "unnamed model"
    tokens = f"{facts['prefill_tokens']} prefill and {facts['decode_tokens']} decode tokens"
    return [
        f"{model}: {facts['layers']} layers x {facts['experts']} experts, K = {facts['top_k']}",
        f"{tokens}, {facts['requests']} requests",
    ]
