"""Speed rows of a report: measured on this machine, and computed from the bandwidths of a device."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dwellmoe.cache.device import DeviceProfile
from dwellmoe.cache.trace import DECODE, RoutingTrace
from dwellmoe.evaluation.generation import Timing
from dwellmoe.evaluation.measure import Measured
from dwellmoe.evaluation.report.comparison import rows_where

TEXT = "teacher_forced"
MEASURED = "wall clock of generate() on this machine, as the model was loaded here, routing recorded"


@dataclass(frozen=True)
class MeasuredSpeedRow:
    """Tokens a second of generation on this machine; None where nothing was timed."""

    variant: str
    prefill_tokens_per_second: float | None
    decode_tokens_per_second: float | None
    batches_timed: int
    rows_together: int
    warm: bool
    """Whether a batch before those that are timed warmed the machine up."""
    adapter: str = "none"
    """How the variant's adapter ran: none, unmerged, or (in an engine) its experts' part merged when read."""
    merged_prefill_tokens_per_second: float | None = None
    merged_decode_tokens_per_second: float | None = None
    """The same with the adapter merged into the weights; None where that was not timed."""
    convention: str = MEASURED

    def as_dict(self) -> dict[str, Any]:
        """The row as one JSON object."""
        return dict(vars(self))


def measured_speed_row(
    variant: str, timings: Sequence[Timing], adapter: str = "none", merged: Sequence[Timing] = ()
) -> MeasuredSpeedRow:
    """The speed over all batches but the first, which warms the machine up, unless it is the only one.

    `merged`: timings with the variant's adapter merged.
    """
    timed = _timed(timings)
    prefill, decode = _tokens_per_second(timed)
    merged_prefill, merged_decode = _tokens_per_second(_timed(merged))
    return MeasuredSpeedRow(
        variant=variant,
        prefill_tokens_per_second=prefill,
        decode_tokens_per_second=decode,
        batches_timed=len(timed),
        rows_together=max((timing.rows for timing in timed), default=0),
        warm=len(timings) > 1,
        adapter=adapter,
        merged_prefill_tokens_per_second=merged_prefill,
        merged_decode_tokens_per_second=merged_decode,
    )


def _timed(timings: Sequence[Timing]) -> Sequence[Timing]:
    return timings[1:] or timings


def _tokens_per_second(timed: Sequence[Timing]) -> tuple[float | None, float | None]:
    """Of prefill and of decode."""
    prefill_seconds = sum(timing.prefill_seconds for timing in timed)
    decode_seconds = sum(timing.decode_seconds for timing in timed)
    prefilled = sum(timing.prefill_tokens for timing in timed)
    decoded = sum(timing.decoded_tokens for timing in timed)
    return (
        prefilled / prefill_seconds if prefill_seconds else None,
        decoded / decode_seconds if decode_seconds else None,
    )


@dataclass(frozen=True)
class SpeedRow:
    """Memory and decoded tokens a second of one cache on a device: bandwidth and latency, no computation."""

    variant: str
    policy: str
    capacity: int
    memory_bytes: int
    tokens_per_second: float

    def as_dict(self) -> dict[str, Any]:
        """The row as one JSON object."""
        return dict(vars(self))


def speed_rows(
    device: DeviceProfile, measured: Mapping[str, Measured], cache: Sequence[dict], resident_bytes: int
) -> list[SpeedRow]:
    """A row a variant, policy and capacity: reference text, decode, a cache a layer.

    `cache`: the hit-rate rows of the report; `resident_bytes`: of everything but the routed experts.
    """
    traces = {variant: found.recordings[TEXT].trace for variant, found in measured.items()}
    rows = rows_where(cache, text=TEXT, phase="decode", scope="layer")
    return [_speed_row(device, traces[row["variant"]], row, resident_bytes) for row in rows]


def _speed_row(device: DeviceProfile, trace: RoutingTrace, row: dict, resident_bytes: int) -> SpeedRow:
    read_bytes = resident_bytes + trace.top_k * sum(trace.expert_bytes or ())
    misses = row["misses"] / int((trace.phase == DECODE).sum())
    seconds = device.seconds_per_token(read_bytes, trace.layers, row["miss_bytes_per_token"], misses)
    return SpeedRow(
        variant=row["variant"],
        policy=row["policy"],
        capacity=row["capacity"],
        memory_bytes=resident_bytes + row["capacity_bytes"],
        tokens_per_second=1 / seconds,
    )


def device_note(device: DeviceProfile) -> str:
    """One line below the figure: the bandwidths, and how the speed is counted."""
    speeds = f"memory {device.memory_gb_per_second:g} GB/s, storage {device.storage_gb_per_second:g} GB/s"
    return f"{speeds}; a floor without computation; {TEXT}, decode, cache a layer, atomic, cold"
