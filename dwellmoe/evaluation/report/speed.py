"""Knows the rows of speed against memory that a report has; does not know how a device is modelled."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from dwellmoe.cache.device import DeviceProfile, load_device
from dwellmoe.cache.trace import DECODE, RoutingTrace
from dwellmoe.errors import UserError
from dwellmoe.evaluation.measure import Measured
from dwellmoe.files import data_file

TEXT = "teacher_forced"


def find_device(path: str) -> DeviceProfile:
    """The device of a profile, seen from here or from the project's folder. Raises UserError."""
    places = (Path(path), data_file(path))
    file = next((place for place in places if place.is_file()), None)
    if file is None:
        known = sorted(data_file("configs/devices").glob("*.toml"))
        names = ", ".join(f"configs/devices/{found.name}" for found in known)
        raise UserError(f"no device profile at '{path}': choose from {names}")
    return load_device(file)


def speed_rows(
    device: DeviceProfile, measured: Mapping[str, Measured], cache: Sequence[dict], resident_bytes: int
) -> list[dict]:
    """Memory and decoded tokens a second at every capacity: reference text, decode, a cache a layer.

    `resident_bytes`: what is in memory beside the routed experts.
    """
    wanted = {"text": TEXT, "phase": "decode", "scope": "layer"}
    rows = [row for row in cache if all(row[name] == value for name, value in wanted.items())]
    traces = {variant: found.recordings[TEXT].trace for variant, found in measured.items()}
    return [_speed_row(device, traces[row["variant"]], row, resident_bytes) for row in rows]


def _speed_row(device: DeviceProfile, trace: RoutingTrace, row: dict, resident_bytes: int) -> dict:
    read_bytes = resident_bytes + trace.top_k * sum(trace.expert_bytes or ())
    misses = row["misses"] / int((trace.phase == DECODE).sum())
    seconds = device.seconds_per_token(read_bytes, trace.layers, row["miss_bytes_per_token"], misses)
    return {
        "variant": row["variant"],
        "policy": row["policy"],
        "capacity": row["capacity"],
        "memory_bytes": resident_bytes + row["capacity_bytes"],
        "tokens_per_second": 1 / seconds,
    }


def device_note(device: DeviceProfile) -> str:
    """One line below the figure: the bandwidths and what the model leaves out."""
    speeds = f"memory {device.memory_gb_per_second:g} GB/s, storage {device.storage_gb_per_second:g} GB/s"
    return f"{speeds}; a floor without computation; {TEXT}, decode, cache a layer, atomic, cold"
