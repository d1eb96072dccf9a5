"""Replays recorded routing through simulated expert caches: replay | curve | describe | plan | fit |
convert | calibrate. Only fit needs torch.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import NoReturn

from errors import UserError, run_command
from expert_cache.tensor_file import check_writable, replacing

SCHEMA_VERSION = 1


def main() -> None:
    run(sys.argv[1:])


def run(words: list[str]) -> None:
    """Carries out one command line. UserError for a mistake in it, before anything is read or written."""
    arguments = parse_arguments(words)
    for name in ("json", "plot", "out"):
        path = getattr(arguments, name, None)
        if path is not None and str(path) != "-":
            check_writable(path)
    arguments.run(arguments)


class Parser(argparse.ArgumentParser):
    """A mistake is one line."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message.replace('argument ', 'option ', 1)}; see {self.prog} --help")


def parse_arguments(words: list[str]) -> argparse.Namespace:
    parser = Parser(prog="simulate.py", description=__doc__, allow_abbrev=False)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    _add_replay(commands)
    _add_curve(commands)
    _add_describe(commands)
    _add_plan(commands)
    _add_fit(commands)
    _add_convert(commands)
    _add_calibrate(commands)
    return parser.parse_args(words)


def _add_replay(commands) -> None:
    command = _command(commands, "replay", run_replay, "one policy at one capacity")
    command.add_argument("--policy", required=True, help="e.g. lru, lrfu:decay=0.95, opt, lopt:horizon=2")
    command.add_argument("--capacity", required=True, help="slots (8), percent (25%%) or bytes (6GiB)")
    _add_convention(command)
    command.add_argument(
        "--hand_over", help="split prefill from decode: shared, none, recent:tokens=8, lrfu:decay=0.95"
    )
    command.add_argument(
        "--prefill_buffer", type=int, help="slots of --capacity that prefill streams through [0]"
    )


def _add_curve(commands) -> None:
    command = _command(commands, "curve", run_curve, "several policies at every capacity")
    command.add_argument("--policies", required=True, nargs="+", metavar="POLICY")
    command.add_argument("--capacities", nargs="+", metavar="C", help="slots or percent [all]")
    _add_convention(command)
    command.add_argument("--plot", metavar="PNG", help="draw hit rate against capacity")


def _add_describe(commands) -> None:
    command = _command(commands, "describe", run_describe, "how local the routing is, and which lever helps")
    command.add_argument("--phase", default="decode", help="decode, prefill or all [decode]")
    command.add_argument(
        "--segment_tokens", type=int, default=16, help="length of a segment for SRP and SCH [16]"
    )
    command.add_argument("--plot", metavar="PNG", help="draw the reuse distance")


def _add_plan(commands) -> None:
    command = _command(commands, "plan", run_plan, "decoding speed against memory on a device")
    command.add_argument(
        "--device", required=True, type=Path, help="profile, e.g. configs/devices/cfmoe_cpu.toml"
    )
    command.add_argument("--policies", nargs="+", default=["lru", "lrfu:decay=0.95", "opt"], metavar="POLICY")
    command.add_argument("--capacities", nargs="+", metavar="C", help="slots or percent [all]")
    command.add_argument(
        "--resident", default="0B", help="bytes always in memory beside routed experts, e.g. 2.1GB [0B]"
    )
    command.add_argument(
        "--tokens_per_second", type=float, help="find the smallest budget that reaches this speed"
    )
    command.add_argument("--plot", metavar="PNG", help="draw speed against memory")


def _add_fit(commands) -> None:
    command = _command(commands, "fit", run_fit, "a learned eviction policy to a trace, split by request")
    command.add_argument("--policy", required=True, help="ml_habits, ml_cecar or ml_flashmoe")
    command.add_argument("--out", required=True, metavar="FILE", help="the .safetensors to write")
    command.add_argument("--phase", default="decode", help="decode, prefill or all [decode]")
    command.add_argument("--capacity", default="25%", help="at which held-out requests are replayed [25%%]")
    command.add_argument("--validation", type=float, default=0.2, help="share of the requests held out [0.2]")
    command.add_argument("--epochs", type=int, default=40, help="at the most; nets stop early [40]")
    command.add_argument("--seed", type=int, default=0, help="of the split and the weights' start [0]")


def _add_convert(commands) -> None:
    command = _command(commands, "convert", run_convert, "between trace formats, by the endings of the names")
    command.add_argument("--out", required=True, metavar="FILE", help="the file to write")
    command.add_argument(
        "--as_decode", action="store_true", help="count a prompt's tokens as decoded, which route alike"
    )


def _add_calibrate(commands) -> None:
    about = "thresholds of the routing strategies des and odp, from the weights of a recorded trace"
    command = _command(commands, "calibrate", run_calibrate, about)
    command.add_argument("--out", required=True, type=Path, help="the file of thresholds to write (JSON)")


def _command(commands, name: str, run, about: str) -> argparse.ArgumentParser:
    command = commands.add_parser(name, help=about, description=about, allow_abbrev=False)
    command.set_defaults(run=run, command=name)
    command.add_argument("--trace", required=True, type=Path, help="a trace in any format that convert knows")
    command.add_argument("--num_experts", type=int, help="experts a layer, for formats that do not say")
    command.add_argument("--prompt_tokens", type=int, help="rows that are prefill, for a .npy array [0]")
    if name not in ("convert", "calibrate"):
        command.add_argument("--json", metavar="PATH", help="write the result ('-': standard output)")
    return command


def _add_convention(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--scope", default="layer", help="a cache for each layer, or one: layer, global [layer]"
    )
    command.add_argument("--access", default="atomic", help="atomic or sequential [atomic]")
    command.add_argument("--phase", default="decode", help="decode, prefill or all [decode]")
    command.add_argument("--start", default="cold", help="cold, warm:prefill or warm:N passes [cold]")
    command.add_argument("--reset", default="never", help="never or request [never]")


def run_replay(arguments: argparse.Namespace) -> None:
    from expert_cache.replay import replay

    if arguments.hand_over is not None:
        return run_split(arguments)
    if arguments.prefill_buffer is not None:
        raise UserError("--prefill_buffer has no effect without --hand_over")
    row = replay(
        read(arguments), arguments.policy, arguments.capacity, **convention(arguments), progress=bar("replay")
    )
    return report(arguments, {"cache": [row]}, hit_rate_lines([row]))


def run_split(arguments: argparse.Namespace) -> None:
    from expert_cache.replay_split import replay_split

    fixed = {"scope": "layer", "phase": "decode", "reset": "never"}
    changed = [name for name, value in fixed.items() if getattr(arguments, name) != value]
    if changed or arguments.start not in ("cold", "warm:prefill"):
        raise UserError(
            f"--{(changed or ['start'])[0]} has no effect with --hand_over: decode is counted after prefill"
        )
    options = {
        "access": arguments.access,
        "prefill_buffer": arguments.prefill_buffer or 0,
        "progress": bar("replay"),
    }
    row = replay_split(read(arguments), arguments.policy, arguments.capacity, arguments.hand_over, **options)
    report(arguments, {"cache": [row]}, hit_rate_lines([row]))


def run_curve(arguments: argparse.Namespace) -> None:
    from expert_cache.curve import curve

    trace = read(arguments)
    rows = curve(
        trace, arguments.policies, arguments.capacities, **convention(arguments), progress=bar("curve")
    )
    if arguments.plot:
        from plots import hit_rate_curve
        from plots.style import save

        save(hit_rate_curve.draw(rows), arguments.plot)
    report(arguments, {"cache": rows}, hit_rate_lines(rows))


def run_describe(arguments: argparse.Namespace) -> None:
    from expert_cache.describe import describe, description_lines

    found = describe(read(arguments), arguments.phase, arguments.segment_tokens, progress=bar("describe"))
    if arguments.plot:
        from plots import reuse_distance
        from plots.style import save

        save(reuse_distance.draw(found["reuse"], arguments.phase), arguments.plot)
    report(arguments, found, description_lines(found))


def run_plan(arguments: argparse.Namespace) -> None:
    from expert_cache.budget import parse_bytes
    from expert_cache.curve import curve
    from expert_cache.plan import load_device, plan, plan_lines

    device, resident_bytes = load_device(arguments.device), parse_bytes(arguments.resident, "--resident")
    trace = read(arguments)
    rows = curve(trace, arguments.policies, arguments.capacities, progress=bar("plan"))
    found = plan(trace, device, rows, resident_bytes, arguments.tokens_per_second)
    if arguments.plot:
        from plots import device_plan
        from plots.style import save

        save(device_plan.draw(found["plan"], device.name, arguments.tokens_per_second), arguments.plot)
    report(arguments, found | {"cache": rows}, plan_lines(found))


def run_fit(arguments: argparse.Namespace) -> None:
    from eviction_training.fit import FitSettings, fit

    names = ("phase", "capacity", "validation", "seed", "epochs")
    settings = FitSettings(**{name: getattr(arguments, name) for name in names})
    found = fit(read(arguments), arguments.policy, arguments.out, settings, progress=bar("fit"))
    report(arguments, found, [f"{arguments.out}: held-out requests", *hit_rate_lines(found["cache"])])


def run_convert(arguments: argparse.Namespace) -> None:
    from expert_cache.formats import write_trace

    trace = read(arguments)
    if arguments.as_decode:
        from expert_cache.trace import as_decode

        trace = as_decode(trace)
    write_trace(trace, arguments.out)
    print(
        f"{arguments.out}: {trace.steps} token steps, {trace.layers} layers x {trace.num_experts} experts, "
        f"K = {trace.top_k}"
    )


def run_calibrate(arguments: argparse.Namespace) -> None:
    from expert_cache.weight_ratios import thresholds_of

    found = thresholds_of(read(arguments))
    found.save(arguments.out)
    print(
        f"{arguments.out}: {len(found.median_LN)} layers, K = {found.top_k}: a token may stop at "
        f"{', '.join(map(str, found.kept)) or 'none'}"
    )


def read(arguments: argparse.Namespace):
    """The trace that the command names."""
    from expert_cache.formats import read_trace

    return read_trace(
        arguments.trace, num_experts=arguments.num_experts, prompt_tokens=arguments.prompt_tokens
    )


def convention(arguments: argparse.Namespace) -> dict[str, str]:
    return {name: getattr(arguments, name) for name in ("scope", "access", "phase", "start", "reset")}


def bar(label: str):
    """A progress bar on stderr, if a person is watching."""
    from expert_cache.progress import progress_bar

    return progress_bar(label)


def hit_rate_lines(rows: list[dict]) -> list[str]:
    """A table of hit-rate rows for people, the convention above it."""
    names = ("scope", "access", "phase", "start", "reset")
    lines = [", ".join(f"{name} {rows[0][name]}" for name in names)] if rows else []
    for row in rows:
        size = "" if row["capacity_bytes"] is None else f"{row['capacity_bytes'] / 1e9:9.3f} GB"
        missed = (
            ""
            if row["miss_bytes_per_token"] is None
            else f"{row['miss_bytes_per_token'] / 1e6:10.2f} MB/token"
        )
        share = f"{row['capacity']:6d} slots {row['capacity_percent']:6.2f} %{size}"
        lines.append(f"{row['policy']:<18}{share}   hit rate {row['hit_rate']:.4f}{missed}")
    return lines


def report(arguments: argparse.Namespace, result: dict, lines: list[str]) -> None:
    """Prints the result for people, or writes it as one JSON object; a file appears whole or not at all."""
    settings = {
        name: value for name, value in vars(arguments).items() if name not in ("run", "json", "command")
    }
    whole = {"schema_version": SCHEMA_VERSION, "command": arguments.command, "settings": settings, **result}
    text = json.dumps(whole, indent=1, default=str, allow_nan=False) + "\n"
    if arguments.json == "-":
        sys.stdout.write(text)
        return
    if arguments.json:
        with replacing(arguments.json) as file:
            file.write(text.encode())
    print("\n".join(lines))


if __name__ == "__main__":
    # numba looks for scipy to do linear algebra, of which there is none here: half of the time to start.
    sys.modules.setdefault("scipy", None)  # type: ignore[arg-type]
    run_command(main)
