"""The command line of `dwellmoe simulate`: its commands and their options."""

import argparse
from pathlib import Path

from dwellmoe.argument_parser import Parser, number
from dwellmoe.options import COUNT, SEED

ABOUT = "Replays recorded routing through simulated expert caches."


def parse_arguments(words: list[str]) -> argparse.Namespace:
    """The settings of one command line; `command` is its command. UserError for a mistake."""
    return simulate_parser().parse_args(words)


def simulate_parser() -> Parser:
    """The parser of every command."""
    parser = Parser(prog="dwellmoe simulate", description=ABOUT)
    commands = parser.add_subparsers(required=True, metavar="COMMAND", title="commands")
    _add_replay(commands)
    _add_curve(commands)
    _add_describe(commands)
    _add_report(commands)
    _add_plan(commands)
    _add_advise(commands)
    _add_stall(commands)
    _add_fit(commands)
    _add_forecast(commands)
    _add_predict(commands)
    _add_convert(commands)
    _add_calibrate(commands)
    return parser


def _add_replay(commands) -> None:
    command = _command(commands, "replay", "hit rate of one eviction policy at one capacity")
    command.add_argument(
        "--policy", required=True, help="eviction policy, e.g. lru, lrfu:decay=0.95, opt, lopt:horizon=2"
    )
    command.add_argument(
        "--capacity", required=True, help="size of the cache: experts (8), percent (25%%) or bytes (6GiB)"
    )
    _add_setup(command)
    command.add_argument(
        "--prefill_handoff",
        metavar="RULE",
        help="keep prefill out of the decode cache, and which of its experts stay for decoding: shared, "
        "none, recent:tokens=8, lrfu:decay=0.95 or pool [prefill is not replayed]",
    )
    command.add_argument(
        "--prefill_buffer",
        type=number(int, least=0, most=COUNT),
        metavar="N",
        help="with --prefill_handoff: how many of the cache's slots prefill streams through [0]",
    )


def _add_curve(commands) -> None:
    command = _command(commands, "curve", "hit rates of several eviction policies at many capacities")
    command.add_argument("--policies", required=True, nargs="+", metavar="POLICY", help="eviction policies")
    command.add_argument(
        "--capacities",
        nargs="+",
        metavar="C",
        help="experts or percent [every one that is large enough]",
    )
    _add_setup(command)
    command.add_argument("--plot", metavar="PNG", help="draw hit rate against capacity")


def _add_describe(commands) -> None:
    about = "how local the routing is, and how soon experts are used again"
    command = _command(commands, "describe", about)
    command.add_argument("--phase", default="decode", help="decode, prefill or all [decode]")
    command.add_argument(
        "--segment_tokens",
        type=number(int, least=1, most=COUNT),
        default=16,
        metavar="N",
        help="tokens of a segment, for the best hit rate of a cache chosen segment by segment [16]",
    )
    command.add_argument("--plot", metavar="PNG", help="draw the reuse distances")


def _add_report(commands) -> None:
    about = "what a published hit rate must state: conventions, workload, regime, gaps (arXiv 2608.07911)"
    command = _command(commands, "report", about)
    command.add_argument(
        "--policies",
        nargs="+",
        metavar="POLICY",
        help="eviction policies beside lru, lfru, opt and, with sequential access, opt_forced "
        "[lrfu:decay=0.95 ml_habits]",
    )
    command.add_argument(
        "--capacities", nargs="+", metavar="C", help="experts, percent or bytes [25%%, or what a step needs]"
    )
    command.add_argument(
        "--against",
        type=Path,
        metavar="TRACE",
        help="a trace of the same requests with another routing, e.g. before training: adds the LRU cache "
        "that it needs to miss as seldom",
    )
    _add_setup(command)
    command.add_argument("--markdown", action="store_true", help="print the tables in Markdown")


def _add_plan(commands) -> None:
    command = _command(commands, "plan", "decoding speed against memory on a device")
    command.add_argument(
        "--device", required=True, type=Path, help="profile of a device, e.g. configs/devices/cfmoe_cpu.toml"
    )
    command.add_argument(
        "--policies",
        nargs="+",
        default=["lru", "lfru", "lrfu:decay=0.95", "opt"],
        metavar="POLICY",
        help="eviction policies",
    )
    command.add_argument(
        "--capacities",
        nargs="+",
        metavar="C",
        help="experts or percent [every one that is large enough]",
    )
    _add_resident(command)
    command.add_argument(
        "--tokens_per_second",
        type=number(float, above=0, most=1e9),
        metavar="N",
        help="find the least memory that reaches this speed",
    )
    command.add_argument("--plot", metavar="PNG", help="draw speed against memory")


def _add_resident(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--model_name",
        metavar="PATH",
        help="checkpoint whose weights beside routed experts are always in memory [the folder that the trace "
        "names, if it is here or in models/]",
    )
    command.add_argument(
        "--resident",
        metavar="BYTES",
        help="bytes always in memory beside routed experts, e.g. 2.1GB, in place of the checkpoint's",
    )


def _add_advise(commands) -> None:
    about = "in plain words: which budget and policy, and whether training, re-routing or low bits help most"
    command = _command(commands, "advise", about)
    command.add_argument(
        "--device", required=True, type=Path, help="profile of a device, e.g. configs/devices/laptop_8gb.toml"
    )
    _add_resident(command)
    command.add_argument(
        "--expert_bits",
        type=number(float, above=0, most=64),
        default=16.0,
        metavar="N",
        help="bits of a weight of the experts as recorded, scales included [16]",
    )
    command.add_argument(
        "--expert_bytes",
        type=number(int, least=1, most=1 << 40),
        metavar="N",
        help="bytes of one expert, for a trace that does not state them",
    )
    command.add_argument(
        "--routing_strategy",
        default="margin",
        metavar="STRATEGY",
        help="routing strategy with which a trace that holds the routers' distributions is replayed [margin]",
    )


def _add_stall(commands) -> None:
    about = "time a decoded token waits for experts in RAM or on disk"
    command = _command(commands, "stall", about)
    command.add_argument(
        "--device", required=True, type=Path, help="profile of a device, e.g. configs/devices/gpu_8gb.toml"
    )
    command.add_argument(
        "--tier_policies",
        nargs="+",
        metavar="POLICY",
        default=["disk", "ram", "lru", "lrfu:decay=0.95", "ml_habits", "placement", "placement+prefetch"],
        help="what decides which tier holds an expert: an eviction policy for each tier; placement, with or "
        "without +prefetch; disk (nothing is kept) or ram (every expert is in RAM)",
    )
    command.add_argument(
        "--capacity",
        help="room for experts on the device: experts of all layers, percent or bytes [by the profile]",
    )
    command.add_argument("--ram_capacity", help="room for experts in RAM; 0 for none [by the profile]")
    command.add_argument("--resident", default="0B", help="bytes always in memory beside routed experts [0B]")


def _add_fit(commands) -> None:
    command = _command(commands, "fit", "fit a learned eviction policy to a trace")
    command.add_argument(
        "--policy", required=True, help="ml_forecast, ml_habits, ml_cecar, ml_flashmoe or static"
    )
    command.add_argument("--out", required=True, metavar="FILE", help="the .safetensors to write")
    command.add_argument("--phase", default="decode", help="decode, prefill or all [decode]")
    command.add_argument("--capacity", default="25%", help="at which held-out requests are replayed [25%%]")
    command.add_argument(
        "--validation",
        type=number(float, above=0, most=0.9),
        default=0.2,
        metavar="SHARE",
        help="share of requests held out [0.2]",
    )
    command.add_argument(
        "--epochs",
        type=number(int, least=1, most=100_000),
        default=40,
        metavar="N",
        help="at most; networks stop early [40]",
    )
    command.add_argument(
        "--seed",
        type=number(int, least=0, most=SEED),
        default=0,
        metavar="N",
        help="of the split and the initial weights [0]",
    )


def _add_forecast(commands) -> None:
    about = "how well use within the next 1, 2, 4 and 8 tokens is forecast: log-loss, recall, calibration"
    command = _command(commands, "forecast", about)
    command.add_argument(
        "--weights",
        default="",
        metavar="FILE",
        help="of `dwellmoe simulate fit --policy ml_forecast` [those in the package]",
    )


def _add_predict(commands) -> None:
    about = "predict expert use with the model itself, for placement"
    command = _command(commands, "predict", about)
    command.add_argument(
        "--predictor", required=True, help="gate_ahead, scoutgate, or gate_ahead+scoutgate, which fuses both"
    )
    command.add_argument("--model_name", required=True, help="the checkpoint that the traces are of")
    command.add_argument(
        "--learn", required=True, type=Path, metavar="TRACE", help="a trace of other requests, to learn from"
    )
    command.add_argument(
        "--beside", default="habits", help="predictor of the layers that these predictions leave out [habits]"
    )
    command.add_argument("--out", required=True, metavar="FILE", help="the .safetensors to write")
    command.add_argument(
        "--scoutgate_out",
        metavar="FILE",
        help="also write the ScoutGate that was trained for this",
    )


def _add_convert(commands) -> None:
    command = _command(commands, "convert", "convert a trace to another format")
    command.add_argument(
        "--out", required=True, metavar="FILE", help="file to write; its ending selects the format"
    )
    command.add_argument(
        "--as_decode",
        action="store_true",
        help="count the tokens of prompts as decoded one by one; they route alike",
    )


def _add_calibrate(commands) -> None:
    about = "thresholds for the routing strategies des and odp"
    command = _command(commands, "calibrate", about)
    command.add_argument("--out", required=True, type=Path, help="the file of thresholds to write (JSON)")


def _command(commands, name: str, about: str) -> argparse.ArgumentParser:
    command = commands.add_parser(name, help=about, description=_sentence(about))
    command.set_defaults(command=name)
    command.add_argument("--trace", required=True, type=Path, help="a recorded trace, in any format")
    command.add_argument(
        "--num_experts",
        type=number(int, least=1, most=65_535),
        metavar="N",
        help="experts a layer, for formats that do not state it",
    )
    command.add_argument(
        "--prompt_tokens",
        type=number(int, least=0, most=COUNT),
        metavar="N",
        help="how many tokens of a request are prefill, for formats that do not state it [0]",
    )
    command.add_argument(
        "--top_k",
        type=number(int, least=1, most=65_535),
        metavar="K",
        help="experts that a token chooses, for formats that do not state it",
    )
    if name not in ("convert", "calibrate"):
        command.add_argument("--json", metavar="PATH", help="write the result as JSON; '-': standard output")
    return command


def _sentence(about: str) -> str:
    return f"{about[0].upper()}{about[1:]}."


def _add_setup(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--scope", default="layer", help="a cache for each layer, or one for all: layer or global [layer]"
    )
    command.add_argument(
        "--access",
        default="atomic",
        help="a layer's experts are requested at once, or one after the other: atomic or sequential [atomic]",
    )
    command.add_argument("--phase", default="decode", help="decode, prefill or all [decode]")
    command.add_argument(
        "--start", default="cold", help="cold, warm:prefill, or warm:N passes before counting begins [cold]"
    )
    command.add_argument("--reset", default="never", help="empty the cache: never or request [never]")
