"""The command line of `data_preparer.py`, which is read before anything slow is imported."""

import argparse

from dwellmoe.argument_parser import Parser, number
from dwellmoe.data.task import SPLITS
from dwellmoe.options import COUNT


def parse_options(arguments: list[str]) -> argparse.Namespace:
    """The options of one command line; `command` is its command. UserError for a mistake."""
    return data_parser().parse_args(arguments)


def data_parser() -> Parser:
    """The parser of every command."""
    parser = Parser(prog="data_preparer.py", description="Fetches, lists and shows the data sets.")
    commands = parser.add_subparsers(required=True, metavar="{fetch,list,show}", dest="command")
    fetching = commands.add_parser("fetch", help="fetch data sets into the cache, resuming broken downloads")
    fetching.add_argument("names", nargs="+", metavar="NAME", help="data sets or task files, or: all")
    commands.add_parser("list", help="list the data sets")
    showing = commands.add_parser("show", help="show examples, their tokens and lengths")
    showing.add_argument("name", metavar="NAME", help="a data set, a task file, or a file of chats or texts")
    showing.add_argument("--split", choices=SPLITS, help="[train; of a benchmark: test]")
    at_least_one = number(int, least=1, most=COUNT)
    showing.add_argument("--count", type=at_least_one, metavar="N", default=3, help="examples to show [3]")
    showing.add_argument("--tokenizer", metavar="PATH", help="show its tokens and count them, not words")
    showing.add_argument(
        "--use_chat_template", choices=("auto", "on", "off"), default="auto", help="as in training [auto]"
    )
    showing.add_argument(
        "--skip_faulty",
        action="store_true",
        help="leave out the records of a file without task.toml that cannot be used",
    )
    return parser
