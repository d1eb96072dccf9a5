"""Knows how fast a device would decode with a given budget for experts; replays nothing itself.

The model is a floor: a token reads every weight it uses from memory once, and first fetches what the cache
misses. Computation is taken to keep up with memory; nothing overlaps.
"""

from collections.abc import Sequence
from dataclasses import asdict

from dwellmoe.cache.device import GIGA, DeviceProfile
from dwellmoe.cache.trace import DECODE, RoutingTrace
from dwellmoe.errors import UserError


def plan(
    trace: RoutingTrace,
    device: DeviceProfile,
    rows: Sequence[dict],
    resident_bytes: int,
    tokens_per_second: float | None = None,
) -> dict:
    """Memory in all and decoded tokens a second for each hit-rate row, and the least memory that reaches a
    speed.

    `resident_bytes`: what is always in memory beside routed experts (attention, shared experts, embeddings,
    KV cache).
    """
    if tokens_per_second is not None and not 0 < tokens_per_second < float("inf"):
        raise UserError(f"tokens_per_second must be a number above 0, got {tokens_per_second}")
    if min(trace.expert_bytes) <= 0:
        raise UserError("a plan needs a trace that says expert_bytes")
    planned = [_plan_row(trace, device, row, resident_bytes) for row in rows]
    found = {"device": asdict(device), "resident_bytes": resident_bytes, "plan": planned}
    if tokens_per_second is not None:
        found |= {
            "target_tokens_per_second": tokens_per_second,
            "smallest": smallest(planned, tokens_per_second),
        }
    return found


def _plan_row(trace: RoutingTrace, device: DeviceProfile, row: dict, resident_bytes: int) -> dict:
    memory_bytes = resident_bytes + row["capacity_bytes"]
    read_bytes = resident_bytes + trace.top_k * sum(trace.expert_bytes)
    misses = row["misses"] / int((trace.phase == DECODE).sum())
    seconds = device.seconds_per_token(read_bytes, trace.layers, row["miss_bytes_per_token"], misses)
    shared = ("policy", "capacity", "capacity_bytes", "capacity_percent", "hit_rate", "miss_bytes_per_token")
    return {
        **{name: row[name] for name in shared},
        "memory_bytes": memory_bytes,
        "tokens_per_second": 1 / seconds,
        "fits": device.memory_gb is None or memory_bytes <= device.memory_gb * GIGA,
    }


def smallest(rows: Sequence[dict], tokens_per_second: float) -> list[dict]:
    """For each policy the row with the least memory that reaches a speed and fits; no row where none does."""
    found: dict[str, dict] = {}
    for row in sorted(rows, key=lambda row: row["memory_bytes"]):
        if row["fits"] and row["tokens_per_second"] >= tokens_per_second:
            found.setdefault(row["policy"], row)
    return list(found.values())


def plan_lines(found: dict) -> list[str]:
    """A plan for people."""
    lines = [
        f"{row['policy']:<18}{row['capacity']:5d} slots a layer {row['memory_bytes'] / GIGA:9.3f} GB"
        f"{row['tokens_per_second']:10.2f} tokens/s{'' if row['fits'] else '   does not fit'}"
        for row in found["plan"]
    ]
    if "smallest" in found:
        target = found["target_tokens_per_second"]
        lines += [
            f"least memory for {target:g} tokens/s, {row['policy']}: {row['memory_bytes'] / GIGA:.3f} GB "
            f"({row['capacity']} slots a layer)"
            for row in found["smallest"]
        ] or [f"no budget that fits reaches {target:g} tokens/s on this device"]
    return lines
