"""The common part of the benchmarks: options of the command line, and the JSON file of the result."""

import argparse
import json
import sys

from dwellmoe.files import replacing


def parser_of(description: str | None) -> argparse.ArgumentParser:
    """A parser with `--json`."""
    formatter = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=description, formatter_class=formatter)
    parser.add_argument("--json", default="-", help="where to write the result; - is standard output")
    return parser


def save_result(result: dict, path: str) -> None:
    """Writes a result to a file, which appears whole, or where `path` is "-" to standard output."""
    text = json.dumps(result, indent=1) + "\n"
    if path == "-":
        sys.stdout.write(text)
        return
    with replacing(path) as file:
        file.write(text.encode())


def show_result(result: dict, path: str | None) -> None:
    """Prints a result, and saves it where a path other than "-" is given."""
    print(json.dumps(result, indent=1))
    if path and path != "-":
        save_result(result, path)
