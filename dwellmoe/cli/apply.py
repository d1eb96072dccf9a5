"""`dwellmoe apply`: a copy of a base model with tuned routers in it."""

from dwellmoe.argument_parser import Parser
from dwellmoe.errors import UserError

ABOUT = (
    "Writes a copy of a model in which the routers are those of a file that `dwellmoe export router` wrote. "
    "The tensors that are replaced are known by their content."
)


def run(words: list[str]) -> None:
    """Applies one file of routers. Raises UserError."""
    arguments = apply_parser().parse_args(words)
    if not arguments.routers:
        raise UserError("ROUTERS '': not the name of a file")
    from dwellmoe.export.apply import apply_routers

    count = apply_routers(arguments.routers, arguments.model_name, arguments.out)
    print(f"{arguments.out}: '{arguments.model_name}' with {count} tensors of its routers replaced")


def apply_parser() -> Parser:
    """The parser of the command."""
    parser = Parser(prog="dwellmoe apply", description=ABOUT)
    parser.add_argument("routers", metavar="ROUTERS", help="file of tuned routers (.safetensors)")
    parser.add_argument(
        "--model_name", required=True, help="folder of a copy of the base, or its name on the hub"
    )
    parser.add_argument("--out", required=True, metavar="FOLDER", help="folder to write")
    return parser
