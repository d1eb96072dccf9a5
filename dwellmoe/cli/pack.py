"""`dwellmoe pack`: writes a checkpoint's experts as one contiguous record each."""

from pathlib import Path

from dwellmoe.argument_parser import Parser
from dwellmoe.errors import UserError
from dwellmoe.folder_lock import only_writer
from dwellmoe.model_folder import check_model_folder

ABOUT = "Writes each expert as one contiguous record, so that with --packed OUT it takes one read."


def run(words: list[str]) -> None:
    """Packs one checkpoint. Raises UserError for a wrong command line or an unreadable checkpoint."""
    arguments = pack_parser().parse_args(words)
    if not arguments.out:  # an unset variable of a shell; as a path it would be the current folder
        raise UserError("OUT '': not the name of a folder")
    check_model_folder(arguments.model, with_tokenizer=False)
    with only_writer(Path(arguments.out)):  # tried before the import, which takes seconds
        pass
    from dwellmoe.offload.pack import pack

    pack(arguments.model, Path(arguments.out))


def pack_parser() -> Parser:
    """The parser of the command."""
    parser = Parser(prog="dwellmoe pack", description=ABOUT)
    parser.add_argument("model", metavar="MODEL", help="folder of a checkpoint")
    parser.add_argument("out", metavar="OUT", help="folder to write")
    return parser
