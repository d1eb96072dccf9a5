"""`dwellmoe pack`: writes a checkpoint's experts as one contiguous record each."""

from pathlib import Path

from dwellmoe.argument_parser import Parser

ABOUT = "Writes each expert as one contiguous record, so that with --packed OUT it takes one read."


def run(words: list[str]) -> None:
    """Packs one checkpoint. Raises UserError for a wrong command line or an unreadable checkpoint."""
    arguments = pack_parser().parse_args(words)
    from dwellmoe.offload.pack import pack

    pack(arguments.model, arguments.out)


def pack_parser() -> Parser:
    """The parser of the command."""
    parser = Parser(prog="dwellmoe pack", description=ABOUT)
    parser.add_argument("model", metavar="MODEL", help="folder of a checkpoint")
    parser.add_argument("out", metavar="OUT", type=Path, help="folder to write")
    return parser
