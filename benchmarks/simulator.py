"""Measures the simulator beside libcachesim, on one trace in one run: `python benchmarks/simulator.py --json
PATH`.

Both replay the same accesses (sequential, one global cache) and must count the same hits, or there is no
result. Compilation is timed apart: every kernel runs once on a small trace first. Ratios are of accesses a
second, ours over theirs.
"""

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from result import show_result

from dwellmoe.cache.expert_cache import ExpertCache
from dwellmoe.cache.formats import write_trace
from dwellmoe.cache.learned import forecast
from dwellmoe.cache.learned.weights import load_weights, save_weights
from dwellmoe.cache.policies import ml_flashmoe
from dwellmoe.cache.replay.curve import curve
from dwellmoe.cache.replay.replay import replay
from dwellmoe.cache.trace import RoutingTrace
from dwellmoe.errors import UserError, run_command
from dwellmoe.registry import name_of

LAYERS, EXPERTS, TOP_K = 48, 128, 8
OLMOE = 16, 64
"""Layers and experts of OLMoE-1B-7B, which chooses as many of them."""
GLOBAL: dict = {"scope": "global", "access": "sequential"}
MILLION = 1e6


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", metavar="PATH", help="write the result ('-': standard output)")
    parser.add_argument("--accesses", type=float, default=10e6, help="length of the trace [10e6]")
    parser.add_argument("--capacity_percent", type=float, default=25, help="of the global cache [25]")
    parser.add_argument("--repeats", type=int, default=3, help="the fastest of so many runs counts [3]")
    arguments = parser.parse_args()
    show_result(measure(arguments), arguments.json)


def measure(arguments: argparse.Namespace) -> dict:
    """All figures; UserError where hit counts differ or a peer is not installed."""
    steps = max(1, round(arguments.accesses / (LAYERS * TOP_K)))
    capacity = round(LAYERS * EXPERTS * arguments.capacity_percent / 100)
    compile_seconds = warm_up()
    trace = local_trace(steps, seed=0)
    settings = {
        "accesses": trace.experts.size,
        "capacity": capacity,
        "layers": LAYERS,
        "experts": EXPERTS,
        "top_k": TOP_K,
    }
    peers = beside_libcachesim(trace, capacity, arguments.repeats)
    curves = {
        f"curve_{name}_maccess_s": trace.experts.size
        / fastest(arguments.repeats, curve, trace, [spec])
        / MILLION
        for name, spec in {"lru": "lru", "opt": "opt", "lopt": "lopt:horizon=2"}.items()
    }
    live = {
        "live_step_us": live_step_us("lru"),
        "live_step_us_by_policy": live_steps(LAYERS, EXPERTS),
        "live_step_us_olmoe_by_policy": live_steps(*OLMOE),
    }
    return (
        {"schema_version": 1, "settings": settings, "compile_or_load_seconds": compile_seconds}
        | peers
        | curves
        | live
    )


def local_trace(
    steps: int, seed: int, layers: int = LAYERS, experts: int = EXPERTS, top_k: int = TOP_K, **fields
) -> RoutingTrace:
    """Routing about as local as a real model's: skewed popularity a layer, and a third of each set kept from
    the last token.
    """
    rng, shape = np.random.default_rng(seed), (layers, experts)
    popularity = rng.normal(0, 1.2, shape).astype(np.float32)
    chosen = np.empty((steps, layers, top_k), np.uint16)
    previous = np.zeros(shape, np.float32)
    for step in range(steps):
        wish = popularity - np.log(rng.exponential(size=shape).astype(np.float32)) + 1.5 * previous
        best = np.argpartition(wish, experts - top_k, axis=1)[:, -top_k:]
        chosen[step] = best
        previous[:] = 0
        np.put_along_axis(previous, best, 1, axis=1)
    return RoutingTrace(
        chosen, np.ones(steps, np.uint8), np.zeros(steps, np.int32), experts, source="synthetic", **fields
    )


def warm_up() -> float:
    """Runs every kernel once; seconds of compiling, or of loading compiled code."""
    begun = time.perf_counter()
    small = local_trace(20, seed=1)
    for spec in ("lru", "lfu", "opt"):
        replay(small, spec, 2000, **GLOBAL)
    curve(small, ["lru", "opt", "lopt:horizon=2"])
    return time.perf_counter() - begun


def beside_libcachesim(trace: RoutingTrace, capacity: int, repeats: int) -> dict:
    """Ratios, and accesses a second of both, for lru, lfu and opt."""
    try:
        import libcachesim
    except ImportError:
        raise UserError("the peer is not installed: pip install libcachesim==0.3.5") from None
    theirs = {"lru": libcachesim.LRU, "lfu": libcachesim.LFU, "opt": libcachesim.Belady}
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.oracleGeneral"
        write_trace(trace, path)
        for spec, kind in theirs.items():
            found |= _pair(spec, kind, trace, capacity, str(path), repeats)
    return found


def _pair(spec: str, kind, trace: RoutingTrace, capacity: int, path: str, repeats: int) -> dict:
    """Ours and theirs in turn, so that both see the same machine."""
    ours_seconds, theirs_seconds = [], []
    for _ in range(repeats):
        begun = time.perf_counter()
        hits = replay(trace, spec, capacity, **GLOBAL).hits
        ours_seconds.append(time.perf_counter() - begun)
        seconds, their_hits = _theirs(kind, capacity, path, trace.experts.size)
        theirs_seconds.append(seconds)
        if hits != their_hits:
            raise UserError(f"{spec}: {hits} hits here, {their_hits} in libcachesim: nothing to compare")
    speed = {
        who: trace.experts.size / min(seconds) / MILLION
        for who, seconds in (("ours", ours_seconds), ("theirs", theirs_seconds))
    }
    return {
        f"{spec}_vs_libcachesim": speed["ours"] / speed["theirs"],
        f"{spec}_maccess_s": speed["ours"],
        f"{spec}_libcachesim_maccess_s": speed["theirs"],
        f"{spec}_hits": hits,
        f"{spec}_libcachesim_hits": their_hits,
    }


def _theirs(kind, capacity: int, path: str, accesses: int) -> tuple[float, int]:
    import libcachesim

    reader: Any = libcachesim.TraceReader(path, libcachesim.TraceType.ORACLE_GENERAL_TRACE)  # type: ignore
    cache = kind(cache_size=capacity)
    begun = time.perf_counter()
    missed, _ = cache.process_trace(reader)
    return time.perf_counter() - begun, round((1 - missed) * accesses)


def live_steps(layers: int, experts: int) -> dict[str, float]:
    """`live_step_us` of other policies; nets of any weights are equally fast."""
    with tempfile.TemporaryDirectory() as folder:
        flashmoe, nets = (Path(folder) / f"{name}.safetensors" for name in ("ml_flashmoe", "ml_forecast"))
        write_flashmoe(flashmoe, layers, experts)
        write_forecast(nets, layers, experts)
        specs = ("lru", "lrfu", "lfru", "ml_cecar", "ml_habits")
        learned = (f"ml_flashmoe:weights={flashmoe}", f"ml_forecast:weights={nets}")
        return {name_of(spec): live_step_us(spec, layers, experts) for spec in (*specs, *learned)}


def write_flashmoe(path: Path, layers: int, experts: int) -> None:
    """Nets of 64 hidden units."""
    shapes = {0: (64, 2 * experts), 1: (64, 64), 2: (experts, 64)}
    tensors = {f"{at}.weight": np.full((layers, *shape), 1e-3) for at, shape in shapes.items()}
    tensors |= {f"{at}.bias": np.zeros((layers, shape[0])) for at, shape in shapes.items()}
    save_weights(path, "ml_flashmoe", ml_flashmoe.LAYOUT, tensors, {})


def write_forecast(path: Path, layers: int, experts: int) -> None:
    """Nets with as many hidden units as those in the package."""
    shipped, _ = load_weights("", "ml_forecast", forecast.LAYOUT)
    hidden, horizons = shipped["hidden_bias"].shape[1], len(forecast.HORIZONS)
    sizes = {"L": layers, "E": experts, "D": hidden, "O": horizons * experts}
    shapes = {**forecast.GENERAL, **forecast.FITTED}
    tensors = {
        name: np.full([sizes.get(size, size) for size in shape], 1e-3) for name, shape in shapes.items()
    }
    save_weights(path, "ml_forecast", forecast.LAYOUT, tensors, {})


def live_step_us(policy: str, layers: int = LAYERS, experts: int = EXPERTS, steps: int = 20000) -> float:
    """Microseconds of one live request: 8 experts of one layer, a quarter of the experts resident."""
    cache = ExpertCache(policy, layers=layers, experts=experts, capacity=experts // 4)
    trace = local_trace(steps // layers, seed=2, layers=layers, experts=experts)
    requests = [sets.astype(np.int32) for sets in trace.experts.reshape(-1, TOP_K)]
    for number, chosen in enumerate(requests[: len(requests) // 4]):
        cache.request(number % layers, chosen)
    begun = time.perf_counter()
    for number, chosen in enumerate(requests):
        cache.request(number % layers, chosen)
    return (time.perf_counter() - begun) / len(requests) * MILLION


def fastest(repeats: int, function: Callable, *arguments) -> float:
    """Seconds of the fastest run."""
    seconds = []
    for _ in range(repeats):
        begun = time.perf_counter()
        function(*arguments)
        seconds.append(time.perf_counter() - begun)
    return min(seconds)


if __name__ == "__main__":
    run_command(main)
