"""The command line of `dwellmoe export`: its commands and their options."""

from dwellmoe.argument_parser import Parser, boolean

OUTTYPES = ("f32", "f16", "bf16", "q8_0", "auto")
ABOUT = "Hands a trained adapter to other programs."


def export_parser() -> Parser:
    """The parser of every command."""
    parser = Parser(prog="dwellmoe export", description=ABOUT)
    commands = parser.add_subparsers(required=True, metavar="COMMAND", title="commands")
    _add_router(commands)
    _add_gguf_routers(commands)
    _add_adapter(commands)
    _add_hf(commands)
    _add_gguf(commands)
    return parser


def _add_router(commands) -> None:
    command = _command(
        commands, "router", "the tuned routers alone, which dwellmoe apply puts on a copy of the base"
    )
    _add_out(command, "FILE", "file to write (.safetensors)")


def _add_gguf_routers(commands) -> None:
    command = _command(
        commands,
        "gguf-routers",
        "a copy of a GGUF file of the base with the tuned routers",
        adapter="folder of the adapter, or the file that dwellmoe export router wrote: then no model is read",
    )
    command.add_argument(
        "--base", required=True, metavar="GGUF", help="GGUF file of the base; of a split one any part"
    )
    command.add_argument(
        "--out", metavar="GGUF", help="file to write; of a split one all parts are written, numbered"
    )
    command.add_argument(
        "--in_place",
        action="store_true",
        help="overwrite the routers in --base itself; its metadata then says nothing of it",
    )
    command.add_argument(
        "--lora_out",
        metavar="GGUF",
        help="also write the LoRA of attention, for llama.cpp's --lora, to this file",
    )


def _add_adapter(commands) -> None:
    command = _command(commands, "adapter", "the adapter with its LoRA laid out as other programs read it")
    command.add_argument(
        "--layout",
        required=True,
        choices=["per_expert"],
        help="per_expert: LoRA of experts one expert each, as vLLM and SGLang read it; without the routers",
    )
    _add_out(command, "FOLDER", "folder to write")


def _add_hf(commands) -> None:
    command = _command(
        commands, "hf", "the base with the adapter merged into it, as an ordinary checkpoint; all in memory"
    )
    _add_out(command, "FOLDER", "folder to write")


def _add_gguf(commands) -> None:
    command = _command(
        commands, "gguf", "the base with the adapter merged into it as a GGUF file, by llama.cpp's converter"
    )
    command.add_argument(
        "--llama_cpp", metavar="FOLDER", help="llama.cpp's source; without it, what to do is printed"
    )
    command.add_argument(
        "--outtype", default="auto", choices=OUTTYPES, help="number type, as the converter takes it"
    )
    _add_out(command, "GGUF", "file to write")


def _command(commands, name: str, about: str, adapter: str = "folder of the adapter") -> Parser:
    command = commands.add_parser(name, help=about, description=about)
    command.set_defaults(command=name)
    command.add_argument("--adapter", required=True, metavar="PATH", help=adapter)
    command.add_argument(
        "--model_name",
        help="folder of the base, or its name on the hub; default: the one that the adapter records",
    )
    command.add_argument(
        "--allow_other_base",
        type=boolean,
        default=False,
        metavar="BOOL",
        help="use the adapter on another base than the one it was trained on",
    )
    return command


def _add_out(command: Parser, kind: str, about: str) -> None:
    command.add_argument("--out", required=True, metavar=kind, help=about)
