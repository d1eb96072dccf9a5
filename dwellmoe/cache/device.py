"""What limits decoding on a device: bandwidths, latencies and memory, from a profile (TOML)."""

import os
import tomllib
from dataclasses import dataclass, field, fields
from typing import Any

from dwellmoe.cache.tensor_file import check_regular
from dwellmoe.errors import UserError, first_line
from dwellmoe.files import data_file, find_file

GIGA = 1e9
NEEDED = ("name", "memory_gb_per_second", "storage_gb_per_second")
TEXTS = ("name", "predictor", "lookahead")
MAY_BE_ZERO = ("eta", "gamma", "hysteresis")
MOST_WINDOW = 10_000
LEAST, MOST = 1e-12, 1e12  # of a number in a profile: beyond, times are no longer finite


@dataclass(frozen=True)
class PlacementConstants:
    """How watermark placement weighs experts: the table `[placement]` of a profile."""

    predictor: str = "habits"  # of use the next time each layer runs (dwellmoe/cache/predictors/)
    lookahead: str = "transition"  # a second one, which knows more of the layers that run next; "": none
    eta: float = 0.9  # share of the second predictor within its horizon
    gamma: float = 0.02  # a use is worth exp(-gamma) less for each layer until then
    window: int = 8  # runs of each layer that count
    hysteresis: float = 0.1


@dataclass(frozen=True)
class DeviceProfile:
    """What limits decoding on a device; decimal gigabytes. `memory_gb` None: memory is no limit.

    Where RAM lies between the device's memory and storage, `ram_gb` is what experts may take of it and
    `ram_gb_per_second` how fast it fills the device.
    """

    name: str
    memory_gb_per_second: float
    storage_gb_per_second: float
    memory_gb: float | None = None
    memory_latency_us: float = 0.0  # a layer: what it costs to start it
    storage_latency_us: float = 0.0  # a read
    storage_reads_at_once: float = 1.0
    ram_gb: float | None = None
    ram_gb_per_second: float | None = None
    ram_latency_us: float = 0.0  # a copy
    placement: PlacementConstants = field(default_factory=PlacementConstants)

    def seconds_per_token(self, read_bytes: float, layers: int, missed_bytes: float, misses: float) -> float:
        """Time of one token that reads `read_bytes` from memory and fetches `misses` experts of
        `missed_bytes` in all.
        """
        memory = read_bytes / (self.memory_gb_per_second * GIGA) + layers * self.memory_latency_us * 1e-6
        waiting = misses * self.storage_latency_us * 1e-6 / self.storage_reads_at_once
        return memory + missed_bytes / (self.storage_gb_per_second * GIGA) + waiting

    def disk_seconds(self, size_bytes: float) -> float:
        """Storage to RAM, or to the device's memory where there is no RAM below it."""
        waiting = self.storage_latency_us * 1e-6 / self.storage_reads_at_once
        return waiting + size_bytes / (self.storage_gb_per_second * GIGA)

    def ram_seconds(self, size_bytes: float) -> float:
        """RAM to the device's memory; 0 where they are one."""
        if self.ram_gb_per_second is None:
            return 0.0
        return self.ram_latency_us * 1e-6 + size_bytes / (self.ram_gb_per_second * GIGA)


def find_device(path: str) -> DeviceProfile:
    """The device of a profile, a user's or the project's. Raises UserError."""
    if not find_file(path).is_file():
        known = sorted(data_file("configs/devices").glob("*.toml"))
        names = ", ".join(f"configs/devices/{found.name}" for found in known)
        raise UserError(f"--device_profile {path}: no such device profile: choose from {names}")
    return load_device(path)


def load_device(path: str | os.PathLike) -> DeviceProfile:
    """Reads a profile, a user's or the project's. UserError names a key that is missing, unknown or wrong."""
    try:
        file = find_file(path)
        check_regular(file)
        table = tomllib.loads(file.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{path}: not a TOML file: {first_line(error)}") from None
    placement = table.pop("placement", {})
    if not isinstance(placement, dict):
        raise UserError(f"{path}: 'placement' must be a table, got {placement!r}")
    _check(path, table, DeviceProfile)
    _check(path, placement, PlacementConstants)
    missing = [name for name in NEEDED if name not in table]
    if missing:
        raise UserError(f"{path}: key '{missing[0]}' is missing")
    if ("ram_gb" in table) != ("ram_gb_per_second" in table):
        raise UserError(f"{path}: give ram_gb and ram_gb_per_second together")
    if placement.get("eta", 0) > 1:
        raise UserError(f"{path}: 'eta' must be at most 1, got {placement['eta']}")
    if placement.get("window", 1) % 1 or placement.get("window", 1) > MOST_WINDOW:
        raise UserError(
            f"{path}: 'window' must be a whole number up to {MOST_WINDOW}, got {placement['window']}"
        )
    return DeviceProfile(**table, placement=PlacementConstants(**placement))


def _check(path, table: dict[str, Any], kind: type) -> None:
    known = [entry.name for entry in fields(kind) if entry.name != "placement"]
    for key, value in table.items():
        if key not in known:
            raise UserError(f"{path}: unknown key '{key}': choose from {', '.join(known)}")
        zero = "latency" in key or key in MAY_BE_ZERO
        if not _fits(key, value, zero):
            range_ = f"a number {'>= 0' if zero else 'above 0'} and at most {MOST:g}"
            raise UserError(
                f"{path}: '{key}' must be {'text' if key in TEXTS else range_}, got {value!r:.60}"
            )


def _fits(key: str, value: Any, zero: bool) -> bool:
    if key in TEXTS:
        return isinstance(value, str)
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return LEAST <= value <= MOST or (value == 0 and zero)
