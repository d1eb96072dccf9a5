"""`dwellmoe record`: the routing of a model on a user's texts, as a trace for the simulator."""

import argparse
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from dwellmoe.adapter_folder import check_adapter_folder
from dwellmoe.argument_parser import Parser, boolean, number
from dwellmoe.errors import UserError
from dwellmoe.files import check_writable
from dwellmoe.model_folder import check_model_folder
from dwellmoe.offload.check_settings import check_settings
from dwellmoe.options import COUNT
from dwellmoe.settings.engine import EngineSettings
from dwellmoe.settings.model import DTYPES, ModelSettings

if TYPE_CHECKING:
    from dwellmoe.cache.trace import RoutingTrace

ABOUT = (
    "Records which experts a model chooses for each token of your texts, as a trace for `dwellmoe simulate`. "
    "Tokens of a text count as decoded one by one: they route alike."
)
STDIN = "-"


def run(words: list[str]) -> None:
    """Records one trace. UserError for a mistake, before a model is loaded."""
    arguments = record_parser().parse_args(words)
    settings = ModelSettings(
        model_name=arguments.model_name,
        dtype=arguments.dtype,
        expert_format=arguments.expert_format,
        trust_remote_code=arguments.trust_remote_code,
    )
    engine = EngineSettings(expert_budget=arguments.expert_budget) if arguments.expert_budget else None
    _check(arguments, engine)
    texts = _texts(arguments.text, arguments.text_per)
    from dwellmoe.evaluation.load import load_with_adapters
    from dwellmoe.loading import active_variant, quiet

    quiet()
    adapters = {"tuned": arguments.lora_save_path} if arguments.lora_save_path else {}
    evaluated = load_with_adapters(settings, engine, adapters, allow_other_base=arguments.allow_other_base)
    with active_variant(evaluated.model, next(iter(adapters), "base")):
        trace = _record(evaluated, texts, arguments)
    _write(trace, arguments.out)


def _check(arguments: argparse.Namespace, engine: EngineSettings | None) -> None:
    check_writable(arguments.out)
    _check_format(arguments.out)
    if os.path.realpath(arguments.out) in map(os.path.realpath, arguments.text):
        raise UserError(f"--out {arguments.out}: is a file of --text, which it would replace")
    if arguments.generate:
        for name in ("gate_probs", "max_tokens"):
            if getattr(arguments, name):
                raise UserError(f"--{name} has no effect with --generate")
    if engine:
        check_settings(engine)
    if arguments.lora_save_path:
        check_adapter_folder(arguments.lora_save_path)
    check_model_folder(arguments.model_name)


def _check_format(out: str) -> None:
    from dwellmoe.cache.formats import check_ending

    check_ending(Path(out))


def _texts(paths: list[str], text_per: str) -> list[str]:
    """The texts of all files. UserError for a file without text."""
    found = []
    for path in paths:
        text = _read(path)
        texts = [text] if text_per == "file" else text.splitlines()
        texts = [text for text in texts if text.strip()]
        if not texts:
            raise UserError(f"--text {path}: there is no text in it")
        found += texts
    return found


def _read(path: str) -> str:
    try:
        data = sys.stdin.buffer.read() if path == STDIN else Path(path).read_bytes()
        return data.decode("utf-8-sig")
    except OSError as error:
        raise UserError(f"--text {path}: cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        bad = error.object[error.start]
        raise UserError(f"--text {path}: not UTF-8 text: byte {error.start} is {bad:#x}") from None


def _record(evaluated, texts: list[str], arguments: argparse.Namespace) -> "RoutingTrace":
    from dwellmoe.cache.progress import progress_bar
    from dwellmoe.evaluation.record_texts import record_answers, record_texts

    if arguments.generate:
        return record_answers(evaluated, texts, arguments.generate, progress_bar("record"))
    return record_texts(
        evaluated,
        texts,
        max_tokens=arguments.max_tokens,
        batch_size=arguments.batch_size,
        gate_probs=arguments.gate_probs,
        progress=progress_bar("record"),
    )


def _write(trace: "RoutingTrace", out: str) -> None:
    from dwellmoe.cache.formats import write_trace
    from dwellmoe.cache.replay.describe import describe_facts, facts_lines

    write_trace(trace, out)
    print("\n".join([f"{out}:", *facts_lines(describe_facts(trace))]))


def record_parser() -> Parser:
    """The parser of the command."""
    parser = Parser(prog="dwellmoe record", description=ABOUT)
    parser.add_argument(
        "--model",
        "--model_name",
        dest="model_name",
        required=True,
        metavar="PATH",
        help="folder of a checkpoint, or its name on the hub",
    )
    parser.add_argument(
        "--text", required=True, nargs="+", metavar="FILE", help="text files, UTF-8; -: standard input"
    )
    parser.add_argument(
        "--out", required=True, metavar="FILE", help="trace to write; its ending selects the format"
    )
    parser.add_argument("--lora_save_path", metavar="FOLDER", help="adapter that is put on the model")
    parser.add_argument(
        "--allow_other_base",
        type=boolean,
        default=False,
        metavar="BOOL",
        help="use the adapter on another base than the one it was trained on",
    )
    parser.add_argument(
        "--text_per",
        choices=("file", "line"),
        default="file",
        help="what is one text, and so one request",
    )
    parser.add_argument(
        "--generate",
        type=number(int, least=1, most=COUNT),
        metavar="N",
        help="take texts as prompts (prefill) and record N tokens generated after each (decode)",
    )
    parser.add_argument(
        "--max_tokens",
        type=number(int, least=2, most=COUNT),
        metavar="N",
        help="a longer text becomes several requests of at most N tokens [the model's context, at most 2048]",
    )
    parser.add_argument(
        "--gate_probs",
        action="store_true",
        help="also keep the full distribution of every router, which gate similarity and the re-routing in "
        "`dwellmoe simulate advise` need",
    )
    parser.add_argument(
        "--batch_size", type=number(int, least=1, most=65_536), default=8, metavar="N", help="texts at once"
    )
    parser.add_argument("--dtype", choices=DTYPES, default="auto", help="number type of the weights")
    parser.add_argument(
        "--expert_format", metavar="FORMAT", help="hold the experts in low bits: nf4, int8, int4, as_stored"
    )
    parser.add_argument(
        "--expert_budget",
        metavar="SIZE",
        help="run with the experts in a cache: slots a layer (8), percent (25%%), or bytes (6GiB)",
    )
    parser.add_argument(
        "--trust_remote_code",
        type=boolean,
        default=False,
        metavar="BOOL",
        help="allow modelling code that comes with the checkpoint to run",
    )
    return parser
