"""Knows the commands of simulate.py and their options; carries none of them out."""

import argparse
from pathlib import Path
from typing import NoReturn

from dwellmoe.errors import UserError

ABOUT = "Replays recorded routing through simulated expert caches."


class Parser(argparse.ArgumentParser):
    """A mistake is one line."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message.replace('argument ', 'option ', 1)}; see {self.prog} --help")


def parse_arguments(words: list[str]) -> argparse.Namespace:
    """The settings of one command line; `command` says which it is. UserError for a mistake."""
    return simulate_parser().parse_args(words)


def simulate_parser() -> Parser:
    """The parser of every subcommand."""
    parser = Parser(prog="dwellmoe simulate", description=ABOUT, allow_abbrev=False)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    _add_replay(commands)
    _add_curve(commands)
    _add_describe(commands)
    _add_plan(commands)
    _add_stall(commands)
    _add_fit(commands)
    _add_predict(commands)
    _add_convert(commands)
    _add_calibrate(commands)
    return parser


def _add_replay(commands) -> None:
    command = _command(commands, "replay", "one policy at one capacity")
    command.add_argument("--policy", required=True, help="e.g. lru, lrfu:decay=0.95, opt, lopt:horizon=2")
    command.add_argument("--capacity", required=True, help="slots (8), percent (25%%) or bytes (6GiB)")
    _add_convention(command)
    command.add_argument(
        "--prefill_handoff", help="split prefill from decode: shared, none, recent:tokens=8, lrfu:decay=0.95"
    )
    command.add_argument(
        "--prefill_buffer", type=int, help="slots of --capacity that prefill streams through [0]"
    )


def _add_curve(commands) -> None:
    command = _command(commands, "curve", "several policies at every capacity")
    command.add_argument("--policies", required=True, nargs="+", metavar="POLICY")
    command.add_argument("--capacities", nargs="+", metavar="C", help="slots or percent [all]")
    _add_convention(command)
    command.add_argument("--plot", metavar="PNG", help="draw hit rate against capacity")


def _add_describe(commands) -> None:
    command = _command(commands, "describe", "how local the routing is, and which method helps")
    command.add_argument("--phase", default="decode", help="decode, prefill or all [decode]")
    command.add_argument(
        "--segment_tokens", type=int, default=16, help="length of a segment for SRP and SCH [16]"
    )
    command.add_argument("--plot", metavar="PNG", help="draw the reuse distance")


def _add_plan(commands) -> None:
    command = _command(commands, "plan", "decoding speed against memory on a device")
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


def _add_stall(commands) -> None:
    about = "time a decoded token waits for experts that are in RAM or on disk, for each tier policy"
    command = _command(commands, "stall", about)
    command.add_argument(
        "--device", required=True, type=Path, help="profile, e.g. configs/devices/gpu_8gb.toml"
    )
    command.add_argument(
        "--tier_policies",
        nargs="+",
        metavar="POLICY",
        default=["disk", "ram", "lru", "lrfu:decay=0.95", "ml_habits", "placement", "placement+prefetch"],
        help="disk, ram, eviction policies, placement, placement+prefetch [those and three policies]",
    )
    command.add_argument(
        "--capacity", help="room for experts on the device: slots in all, percent, bytes [the profile's]"
    )
    command.add_argument("--ram_capacity", help="the same in RAM; 0: none [the profile's]")
    command.add_argument("--resident", default="0B", help="bytes always in memory beside routed experts [0B]")


def _add_fit(commands) -> None:
    command = _command(commands, "fit", "a learned eviction policy to a trace, split by request")
    command.add_argument("--policy", required=True, help="ml_habits, ml_cecar or ml_flashmoe")
    command.add_argument("--out", required=True, metavar="FILE", help="the .safetensors to write")
    command.add_argument("--phase", default="decode", help="decode, prefill or all [decode]")
    command.add_argument("--capacity", default="25%", help="at which held-out requests are replayed [25%%]")
    command.add_argument("--validation", type=float, default=0.2, help="share of the requests held out [0.2]")
    command.add_argument("--epochs", type=int, default=40, help="at the most; nets stop early [40]")
    command.add_argument("--seed", type=int, default=0, help="of the split and the weights' start [0]")


def _add_predict(commands) -> None:
    about = "predictions of use that take the model, written beside a trace for [placement] of a profile"
    command = _command(commands, "predict", about)
    command.add_argument(
        "--predictor", required=True, help="gate_ahead, scoutgate or gate_ahead+scoutgate, which fuses them"
    )
    command.add_argument("--model_name", required=True, help="the checkpoint that wrote the traces")
    command.add_argument(
        "--learn", required=True, type=Path, metavar="TRACE", help="of other requests, to learn from"
    )
    command.add_argument(
        "--beside", default="habits", help="predictor of the layers it says nothing of [habits]"
    )
    command.add_argument("--out", required=True, metavar="FILE", help="the .safetensors to write")
    command.add_argument(
        "--scoutgate_out", metavar="FILE", help="also write the ScoutGate that was trained for it"
    )


def _add_convert(commands) -> None:
    command = _command(commands, "convert", "between trace formats, by the endings of the names")
    command.add_argument("--out", required=True, metavar="FILE", help="the file to write")
    command.add_argument(
        "--as_decode", action="store_true", help="count a prompt's tokens as decoded, which route alike"
    )


def _add_calibrate(commands) -> None:
    about = "thresholds of the routing strategies des and odp, from the weights of a recorded trace"
    command = _command(commands, "calibrate", about)
    command.add_argument("--out", required=True, type=Path, help="the file of thresholds to write (JSON)")


def _command(commands, name: str, about: str) -> argparse.ArgumentParser:
    command = commands.add_parser(name, help=about, description=about, allow_abbrev=False)
    command.set_defaults(command=name)
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
