"""The commands of `dwellmoe simulate`; each prints its result or writes it as one JSON object."""

import argparse
import json
import os
import sys
from collections.abc import Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dwellmoe.cli.simulate_options import parse_arguments
from dwellmoe.errors import UserError, needs
from dwellmoe.files import check_writable, replacing
from dwellmoe.log import warn_once

if TYPE_CHECKING:
    from dwellmoe.cache.replay.rows import HitRateRow
    from dwellmoe.cache.trace import RoutingTrace

SCHEMA_VERSION = 1
SETUP = ("scope", "access", "phase", "start", "reset")
WITH_TORCH = ("fit", "predict")
INPUTS, OUTPUTS = ("trace", "against", "learn", "device"), ("json", "plot", "out", "scoutgate_out")
"""Options that name files."""


def run(words: list[str]) -> None:
    """Carries out one command line. UserError for a mistake in it, before anything is read or written."""
    arguments = parse_arguments(words)
    _check_outputs(arguments)
    with needs("offload" if arguments.command in WITH_TORCH else "sim"):
        COMMANDS[arguments.command](arguments)


def _check_outputs(arguments: argparse.Namespace) -> None:
    """UserError for an output that cannot be written, or that would replace a file of another option."""
    taken: dict[str, str] = {}
    for name in (*INPUTS, *OUTPUTS):
        path = getattr(arguments, name, None)
        if path is None or str(path) == "-":
            continue
        if name in OUTPUTS:
            check_writable(path)
        place = os.path.realpath(path)
        other = taken.setdefault(place, name)
        if other != name and name in OUTPUTS and (os.path.isfile(place) or not os.path.exists(place)):
            raise UserError(f"--{name} {path}: is the file of --{other}, which it would replace")


def run_replay(arguments: argparse.Namespace) -> None:
    from dwellmoe.cache.replay.replay import replay

    if arguments.prefill_handoff is not None:
        return run_prefill_decode(arguments)
    if arguments.prefill_buffer is not None:
        raise UserError("--prefill_buffer has no effect without --prefill_handoff")
    row = replay(
        read(arguments), arguments.policy, arguments.capacity, **setup_of(arguments), progress=bar("replay")
    )
    return report(arguments, {"cache": [row]}, hit_rate_lines([row]))


def run_prefill_decode(arguments: argparse.Namespace) -> None:
    from dwellmoe.cache.replay.replay_split import replay_split

    fixed = {"scope": "layer", "phase": "decode", "reset": "never"}
    changed = [name for name, value in fixed.items() if getattr(arguments, name) != value]
    if changed or arguments.start not in ("cold", "warm:prefill"):
        raise UserError(
            f"--{(changed or ['start'])[0]} has no effect with --prefill_handoff: decode after prefill counts"
        )
    options = {
        "access": arguments.access,
        "prefill_buffer": arguments.prefill_buffer or 0,
        "progress": bar("replay"),
    }
    row = replay_split(
        read(arguments), arguments.policy, arguments.capacity, arguments.prefill_handoff, **options
    )
    report(arguments, {"cache": [row]}, hit_rate_lines([row]))


def run_curve(arguments: argparse.Namespace) -> None:
    from dwellmoe.cache.replay.curve import curve

    trace = read(arguments)
    rows = curve(
        trace, arguments.policies, arguments.capacities, **setup_of(arguments), progress=bar("curve")
    )
    if arguments.plot:
        from dwellmoe.plots import hit_rate_curve
        from dwellmoe.plots.style import save

        save(hit_rate_curve.draw([row.as_dict() for row in rows]), arguments.plot)
    report(arguments, {"cache": rows}, hit_rate_lines(rows))


def run_describe(arguments: argparse.Namespace) -> None:
    from dwellmoe.cache.replay.describe import describe, description_lines

    found = describe(read(arguments), arguments.phase, arguments.segment_tokens, progress=bar("describe"))
    if arguments.plot:
        from dwellmoe.plots import reuse_distance
        from dwellmoe.plots.style import save

        save(reuse_distance.draw(found["reuse"], arguments.phase), arguments.plot)
    report(arguments, found, description_lines(found))


def run_report(arguments: argparse.Namespace) -> None:
    from dwellmoe.cache.replay.report_block import POLICIES, report_block
    from dwellmoe.cache.replay.report_lines import report_lines

    block = report_block(
        read(arguments),
        arguments.policies or POLICIES,
        arguments.capacities,
        against=arguments.against and read(arguments, arguments.against),
        **setup_of(arguments),
        progress=bar("report"),
    )
    report(arguments, block, report_lines(block, arguments.markdown))


def run_plan(arguments: argparse.Namespace) -> None:
    from dwellmoe.cache.device import load_device
    from dwellmoe.cache.replay.curve import curve
    from dwellmoe.cache.replay.plan import check_sizes, plan, plan_lines

    device, trace = load_device(arguments.device), read(arguments)
    check_sizes(trace)
    resident_bytes = resident_bytes_for(arguments, trace)
    rows = curve(trace, arguments.policies, arguments.capacities, progress=bar("plan"))
    found = plan(trace, device, rows, resident_bytes, arguments.tokens_per_second)
    if arguments.plot:
        from dwellmoe.plots import device_plan
        from dwellmoe.plots.style import save

        save(
            device_plan.draw([row.as_dict() for row in found.rows], device.name, arguments.tokens_per_second),
            arguments.plot,
        )
    report(arguments, found.as_dict() | {"cache": rows}, plan_lines(found))


def run_advise(arguments: argparse.Namespace) -> None:
    from dwellmoe.cache.device import load_device
    from dwellmoe.cache.replay.advice_lines import advice_lines
    from dwellmoe.cache.replay.advise import BASELINE, advise
    from dwellmoe.routing.rerouted_trace import can_reroute, rerouted_misses
    from dwellmoe.routing.strategies import load_strategy

    load_strategy(arguments.routing_strategy)
    device, trace = load_device(arguments.device), with_expert_bytes(read(arguments), arguments.expert_bytes)
    found = advise(
        trace,
        device,
        resident_bytes_for(arguments, trace),
        arguments.expert_bits,
        rerouted=partial(
            rerouted_misses, trace, arguments.routing_strategy, BASELINE, progress=bar("re-routing")
        )
        if can_reroute(trace)
        else None,
        progress=bar("advise"),
    )
    report(arguments, found.as_dict(), advice_lines(found))


def with_expert_bytes(trace: "RoutingTrace", expert_bytes: int | None) -> "RoutingTrace":
    """The trace with a given size of its experts. UserError where it states one itself, or none is given."""
    known = min(trace.expert_bytes) > 0
    if expert_bytes is None and not known:
        raise UserError("the trace does not state the size of an expert: give --expert_bytes")
    if expert_bytes is not None and known:
        raise UserError("--expert_bytes has no effect: the trace states the size of its experts")
    return trace if known else replace(trace, expert_bytes=(expert_bytes,) * trace.layers)


def resident_bytes_for(arguments: argparse.Namespace, trace: "RoutingTrace") -> int:
    """Bytes beside routed experts: as given, else of the checkpoint that is given or that the trace names."""
    from dwellmoe.cache.budget import parse_bytes

    if arguments.resident is not None:
        if arguments.model_name:
            raise UserError("--model_name has no effect with --resident: give one of them")
        return parse_bytes(arguments.resident, "--resident")
    model_name = arguments.model_name or find_model(trace.model)
    if model_name is None:
        warn_once(
            "what is in memory beside routed experts is unknown and counted as 0: give --model_name PATH or "
            "--resident BYTES"
        )
        return 0
    with needs("offload"):
        from dwellmoe.offload.resident_bytes import resident_bytes_of

    found = resident_bytes_of(model_name, trace)
    warn_once(f"always in memory: the weights of '{model_name}' beside its routed experts")
    return found


def find_model(name: str) -> str | None:
    """The folder of the checkpoint that a trace names, if it is here or in models/."""
    folders = (Path(name), Path("models") / name)
    return next((str(folder) for folder in folders if name and (folder / "config.json").is_file()), None)


def run_stall(arguments: argparse.Namespace) -> None:
    from dwellmoe.cache.budget import parse_bytes
    from dwellmoe.cache.device import load_device
    from dwellmoe.cache.replay.stall import stall, stall_lines
    from dwellmoe.cache.tiers.tier_policy import tier_budget, with_scopes

    device, resident_bytes = load_device(arguments.device), parse_bytes(arguments.resident, "--resident")
    trace = read(arguments)
    budget = tier_budget(trace, device, resident_bytes, arguments.capacity, arguments.ram_capacity)
    rows = [
        stall(trace, device, budget, name, scope=scope, resident_bytes=resident_bytes, progress=bar(name))
        for name, scope in with_scopes(arguments.tier_policies)
    ]
    report(arguments, {"device": asdict(device), "stall": rows}, stall_lines(rows))


def run_fit(arguments: argparse.Namespace) -> None:
    from dwellmoe.cache.replay.forecast_quality import forecast_lines
    from dwellmoe.eviction_training.fit import FitSettings, fit

    names = ("phase", "capacity", "validation", "seed", "epochs")
    settings = FitSettings(**{name: getattr(arguments, name) for name in names})
    found = fit(read(arguments), arguments.policy, arguments.out, settings, progress=bar("fit"))
    lines = [f"{arguments.out}: held-out requests", *hit_rate_lines(found["cache"])]
    if "forecast" in found:
        lines += forecast_lines(found["forecast"])
    report(arguments, found, lines)


def run_forecast(arguments: argparse.Namespace) -> None:
    from dwellmoe.cache.replay.forecast_quality import forecast_lines, forecast_quality

    rows = forecast_quality(read(arguments), arguments.weights, progress=bar("forecast"))
    report(arguments, {"forecast": rows}, forecast_lines(rows))


def run_predict(arguments: argparse.Namespace) -> None:
    from dwellmoe.cache.formats import read_trace
    from dwellmoe.model_folder import check_model_folder

    check_model_folder(arguments.model_name, with_tokenizer=False)
    trace, learned = read(arguments), read_trace(arguments.learn)
    from dwellmoe.eviction_training.model_predictions import (
        GATE_AHEAD,
        Source,
        check_predictors,
        record_predictions,
    )
    from dwellmoe.loading import load_model
    from dwellmoe.routing.scoutgate import save_scoutgate
    from dwellmoe.settings.model import ModelSettings

    if arguments.scoutgate_out and arguments.predictor == GATE_AHEAD:
        raise UserError(f"--scoutgate_out has no effect with --predictor {GATE_AHEAD}")
    check_predictors(arguments.predictor, arguments.beside)
    model = load_model(ModelSettings(model_name=arguments.model_name))
    source = Source.of(model, learned, trace)
    found = record_predictions(arguments.predictor, source, arguments.beside, bar("scoutgate"))
    if found.gate and arguments.scoutgate_out:
        save_scoutgate(found.gate, arguments.scoutgate_out, trace.model)
    found.predictions.save(arguments.out)
    lines = [f'predictor = "{arguments.beside}"', f'lookahead = "recorded:file={arguments.out}"']
    report(arguments, found.facts, ["[placement]", *lines, f"eta = {found.facts['eta']:.2f}"])


def run_convert(arguments: argparse.Namespace) -> None:
    from dwellmoe.cache.formats import write_trace

    trace = read(arguments)
    if arguments.as_decode:
        from dwellmoe.cache.trace import as_decode

        trace = as_decode(trace)
    write_trace(trace, arguments.out)
    print(
        f"{arguments.out}: {trace.steps} token steps, {trace.layers} layers x {trace.num_experts} experts, "
        f"K = {trace.top_k}"
    )


def run_calibrate(arguments: argparse.Namespace) -> None:
    from dwellmoe.cache.weight_ratios import thresholds_of

    found = thresholds_of(read(arguments))
    found.save(arguments.out)
    print(
        f"{arguments.out}: {len(found.median_LN)} layers, K = {found.top_k}: a token may stop at "
        f"{', '.join(map(str, found.kept)) or 'none'}"
    )


def read(arguments: argparse.Namespace, path: Path | None = None):
    """The trace that the command names, or another one of the same format."""
    from dwellmoe.cache.formats import read_trace

    return read_trace(
        path or arguments.trace,
        num_experts=arguments.num_experts,
        prompt_tokens=arguments.prompt_tokens,
        top_k=arguments.top_k,
    )


def setup_of(arguments: argparse.Namespace) -> dict[str, Any]:
    """The fields of `CacheSetup`."""
    return {name: getattr(arguments, name) for name in SETUP}


def bar(label: str):
    """A progress bar on standard error, if that is a terminal."""
    from dwellmoe.cache.progress import progress_bar

    return progress_bar(label)


def hit_rate_lines(rows: "Sequence[HitRateRow]") -> list[str]:
    """Hit-rate rows as a table, below the setup they were counted with.

    Where `opt` is among them each row has its share of the gap that LRU and LFRU leave to it.
    """
    from dwellmoe.cache.replay.gap import gap_shares

    lines = [", ".join(f"{name} {getattr(rows[0], name)}" for name in SETUP)] if rows else []
    for row in rows:
        size, missed = "", ""
        if row.capacity_bytes is not None:
            size = f" {row.capacity_bytes / 1e9:8.3f} GB"
        if row.miss_bytes_per_token is not None:
            missed = f" {row.miss_bytes_per_token / 1e6:9.2f} MB/token"
        share = f"{row.capacity:6d} slots {row.capacity_percent:6.2f} %{size}"
        gaps = [
            f"{name.upper()} {value:.2f}"
            for name, value in gap_shares(row, rows).items()
            if value is not None
        ]
        closed = f"   of the gap of {', '.join(gaps)}" if gaps else ""
        lines.append(f"{row.policy:<18}{share}   hit rate {row.hit_rate:.4f}{missed}{closed}")
    return lines


def report(arguments: argparse.Namespace, result: dict, lines: list[str]) -> None:
    """Prints `lines`; with --json also writes one JSON object, to a file that appears whole or not at all."""
    settings = {name: value for name, value in vars(arguments).items() if name not in ("json", "command")}
    whole = {"schema_version": SCHEMA_VERSION, "command": arguments.command, "settings": settings, **result}
    text = json.dumps(whole, indent=1, default=_as_json, allow_nan=False) + "\n"
    if arguments.json == "-":
        sys.stdout.write(text)
        return
    if arguments.json:
        with replacing(arguments.json) as file:
            file.write(text.encode())
    print("\n".join(lines))


def _as_json(value: Any) -> Any:
    """What JSON has no type for: a row of results, a path."""
    return value.as_dict() if hasattr(value, "as_dict") else str(value)


COMMANDS = {
    "replay": run_replay,
    "curve": run_curve,
    "describe": run_describe,
    "report": run_report,
    "plan": run_plan,
    "advise": run_advise,
    "stall": run_stall,
    "fit": run_fit,
    "forecast": run_forecast,
    "predict": run_predict,
    "convert": run_convert,
    "calibrate": run_calibrate,
}
