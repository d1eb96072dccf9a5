"""Knows how long decoding waits for experts over device, RAM and disk, by whoever keeps the tiers; decides
nothing itself.

An expert on the device costs nothing, one in RAM a copy, one on disk a read and a copy, one after the other.
What is brought up ahead moves only while layers compute and in nobody's way: whoever asks for an expert under
way waits for the rest of it. Expert e of layer l is number l * E + e.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np

from dwellmoe.cache.access import passes_of
from dwellmoe.cache.device import DeviceProfile
from dwellmoe.cache.replay.sweep import Progress
from dwellmoe.cache.replay.transfer_channel import Link
from dwellmoe.cache.tiers.tier_policy import PREFETCHING, RAM_ALONE, Room, make_manager
from dwellmoe.cache.tiers.tier_stack import TierStep
from dwellmoe.cache.trace import EMPTY, RoutingTrace
from dwellmoe.errors import UserError


@dataclass
class Tally:
    """What a replay counts; seconds in all."""

    tokens: int = 0
    device_hits: int = 0
    ram_hits: int = 0
    disk_loads: int = 0
    stall_seconds: float = 0.0
    copied_bytes: int = 0  # RAM -> device
    read_bytes: int = 0  # disk -> RAM or device
    prefetches: int = 0
    prefetch_hits: int = 0  # asked for while, or after, it came up to the device ahead
    prefetches_wasted: int = 0  # left before anybody asked
    in_flight_waits: int = 0  # asked for while it was under way


def stall(
    trace: RoutingTrace,
    device: DeviceProfile,
    room: Room,
    manager: str,
    *,
    scope: str = "global",
    resident_bytes: int = 0,
    progress: Progress | None = None,
) -> dict:
    """One row: how long a decoded token waits for experts under `manager`, from cold caches.

    manager  a policy for both tiers; `placement` for watermark placement, `placement+prefetch` for it with
             experts brought up ahead; `disk`: nothing is kept; `ram`: everything is in RAM (`fits` says
             whether it does), nothing on the device
    scope    of a policy's caches: one for all layers, or one a layer
    UserError where a step does not fit, and for a trace without `expert_bytes`.
    """
    if min(trace.expert_bytes) <= 0:
        raise UserError("stall time needs a trace that says expert_bytes")
    whole = sum(trace.expert_bytes) * trace.num_experts
    fits = manager != RAM_ALONE or room.ram_bytes >= whole
    compute = trace.top_k * sum(trace.expert_bytes) + resident_bytes
    compute_seconds = device.seconds_per_token(compute, trace.layers, 0, 0) / trace.layers
    run = _Run(trace, device, make_manager(trace, device, room, manager, scope), compute_seconds)
    tally = run.replay(manager == PREFETCHING, progress)
    return {"manager": manager, "scope": scope, **asdict(room), "fits": fits} | _per_token(tally)


def _per_token(tally: Tally) -> dict:
    asked = tally.device_hits + tally.ram_hits + tally.disk_loads
    names = ("device_hits", "ram_hits", "disk_loads")
    found = asdict(tally) | {f"{name.split('_')[0]}_share": getattr(tally, name) / asked for name in names}
    per_token = {
        "stall_ms_per_token": 1e3 * tally.stall_seconds / tally.tokens,
        "copied_bytes_per_token": tally.copied_bytes / tally.tokens,
        "read_bytes_per_token": tally.read_bytes / tally.tokens,
    }
    return found | per_token


class _Run:
    """A replay under way."""

    def __init__(self, trace: RoutingTrace, device: DeviceProfile, keeper, compute_seconds: float) -> None:
        self.trace, self.keeper, self.compute_seconds = trace, keeper, compute_seconds
        self.copy_L = [device.ram_seconds(size) for size in trace.expert_bytes]
        self.read_L = [device.disk_seconds(size) for size in trace.expert_bytes]
        self.tally = Tally()
        self.links = Link(max(self.copy_L) or max(self.read_L)), Link(max(self.read_L))  # to device, to RAM
        self._ahead: set[int] = set()  # on the device, or on their way, and not yet asked for

    def replay(self, prefetching: bool, progress: Progress | None) -> Tally:
        passes = passes_of(self.trace, "decode")
        for number in range(len(passes)):
            rows = self.trace.experts[passes.begin[number] : passes.end[number]]
            self.tally.tokens += len(rows)
            for layer in range(self.trace.layers):
                asked = rows[:, layer]
                asked = np.unique(asked[asked != EMPTY]).astype(np.int64)
                if prefetching:
                    self._layer_with_prefetch(layer, asked)
                else:
                    self._count(layer, self.keeper.step(layer, asked))
            if progress:
                progress(number + 1, len(passes))
        return self.tally

    def _count(self, layer: int, step: TierStep) -> None:
        tally, size = self.tally, self.trace.expert_bytes[layer]
        from_ram, from_disk = len(step.from_ram), len(step.from_disk)
        tally.device_hits += step.hits
        tally.ram_hits += from_ram
        tally.disk_loads += from_disk
        tally.stall_seconds += (from_ram + from_disk) * self.copy_L[layer] + from_disk * self.read_L[layer]
        tally.copied_bytes += (from_ram + from_disk * (self.copy_L[layer] > 0)) * size
        tally.read_bytes += from_disk * size

    def _layer_with_prefetch(self, layer: int, asked: np.ndarray) -> None:
        numbers = asked + layer * self.trace.num_experts
        self._wait_for(numbers.tolist())
        before, rooms = self.keeper.placement.tier, [link.room(self.compute_seconds) for link in self.links]
        step = self.keeper.step(layer, asked, tuple(rooms))
        self._count(layer, step)
        self._leave([*step.demoted, *step.dropped])
        self._bring_up(self.keeper.rose(before, numbers.tolist()))
        for link in self.links:
            link.run(self.compute_seconds)

    def _wait_for(self, numbers: list[int]) -> None:
        """Those asked for that are still under way are waited for; what came ahead has been of use."""
        for number in numbers:
            used = number in self._ahead
            self._ahead.discard(number)
            self.tally.prefetch_hits += used
            left = sum(link.take(number) for link in self.links)
            self.tally.in_flight_waits += left > 0
            self.tally.stall_seconds += left

    def _leave(self, numbers: list[int]) -> None:
        for number in numbers:
            self.tally.prefetches_wasted += number in self._ahead
            self._ahead.discard(number)
            for link in self.links:
                link.take(number)

    def _bring_up(self, risen: tuple[list[int], list[int]]) -> None:
        to_device, to_ram = risen
        tally, size = self.tally, self.trace.expert_bytes
        for number in to_device:
            layer = number // self.trace.num_experts
            self.links[0].add(number, self.copy_L[layer] or self.read_L[layer])
            tally.copied_bytes += size[layer] * (self.copy_L[layer] > 0)
            tally.read_bytes += size[layer] * (self.copy_L[layer] == 0)
        for number in to_ram:
            layer = number // self.trace.num_experts
            self.links[1].add(number, self.read_L[layer])
            tally.read_bytes += size[layer]
        self._ahead.update(to_device)
        tally.prefetches += len(to_device)


def stall_lines(rows: Sequence[dict]) -> list[str]:
    """A table for people, least stall first."""
    lines = []
    for row in sorted(rows, key=lambda row: (not row["fits"], row["stall_ms_per_token"])):
        shares = " ".join(f"{name} {row[f'{name}_share']:.3f}" for name in ("device", "ram", "disk"))
        ahead = (
            f"   ahead {row['prefetches']}, of use {row['prefetch_hits']}, wasted {row['prefetches_wasted']}"
            if row["prefetches"]
            else ""
        )
        lines.append(
            f"{row['manager']:<20}{row['scope']:<8}{row['stall_ms_per_token']:10.3f} ms/token   {shares}   "
            f"{row['read_bytes_per_token'] / 1e6:9.2f} MB/token read{ahead}"
            f"{'' if row['fits'] else '   does not fit'}"
        )
    return lines
