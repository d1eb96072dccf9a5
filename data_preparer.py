"""The data sets' command line: fetches them, lists them, shows what a model will read.

python data_preparer.py fetch boolq piqa      (or: fetch all)
python data_preparer.py list
python data_preparer.py show boolq --split train --count 3 --tokenizer models/tiny-olmoe
"""

if __name__ == "__main__":  # before the imports below, which take seconds
    from dwellmoe.interrupt import end_quietly_on_interrupt

    end_quietly_on_interrupt()
    from dwellmoe.launch import begin

    begin("dwellmoe.data.command_line:parse_options", "dwellmoe.data.check_data:check_command")

import argparse
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np
from rich.console import Console
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from dwellmoe.data.catalogue import entries, fetch
from dwellmoe.data.collate import IGNORED_LABEL
from dwellmoe.data.command_line import parse_options
from dwellmoe.data.examples import Example, load_examples
from dwellmoe.data.remote import hub_answers
from dwellmoe.data.task import SPLITS, load_task, task_names, worded
from dwellmoe.data.tokenised import check_end_token, encode_examples, token_ids
from dwellmoe.data.wording import as_asked, worded_examples
from dwellmoe.errors import UserError, run_command
from dwellmoe.registry import take_plugins

console = Console(highlight=False, markup=False)


def fetch_command(options: argparse.Namespace) -> None:
    """Fetches each named data set; what is out of reach does not stop the others."""
    names = task_names() if "all" in options.names else options.names
    missing = []
    for task in [load_task(name) for name in names]:
        for result in fetch(task):
            title = f"{result.name}, {result.split}"
            print(result.failure or f"{title}: {result.source}", flush=True)
            missing += [title] if result.failure else []
    if missing:
        raise UserError(f"out of reach: {'; '.join(missing)}")


def list_command(options: argparse.Namespace) -> None:
    """Name, licence, splits and sources of every data set."""
    table = Table("data set", *SPLITS, "licence", "can come from", box=None)
    for entry in entries():
        table.add_row(entry.name, *entry.splits.values(), entry.licence, "\n".join(entry.sources))
    console.print(table)


def show_command(options: argparse.Namespace) -> None:
    """The first examples of a split, the answer marked, and how long prompts and answers are.

    With a tokenizer also the tokens, as a model reads them: through the chat template where the task says so.
    Where the authors of a data set ask that no example be shown, the lengths alone.
    """
    task = load_task(options.name, options.skip_faulty)
    options.split = options.split or ("test" if task.benchmark else "train")
    tokenizer = _load_tokenizer(options.tokenizer) if options.tokenizer else None
    task = as_asked(task, tokenizer, options.use_chat_template) if tokenizer else worded(task, chat=False)
    examples = load_examples(task, options.split, mix_available_only=True)
    if not examples:
        raise UserError(f"{options.name}: the split '{options.split}' is empty")
    examples = worded_examples(task, examples, tokenizer)
    if task.undisclosed:
        console.print(
            f"{task.name}: {len(examples)} examples, not shown: its authors ask to keep them offline"
        )
    for i, example in enumerate(examples[: 0 if task.undisclosed else options.count], start=1):
        console.print(_rendered(example, f"{options.split} {i} of {len(examples)}, {options.name}"))
        if tokenizer:
            console.print(_rendered_tokens(example, tokenizer))
    console.print(_length_table(examples, tokenizer))


def _rendered(example: Example, title: str) -> Panel:
    text = Text()
    for number, piece in enumerate(_pieces(example)):
        text.append(f"⟦{piece}⟧" if number % 2 else piece, style="bold green" if number % 2 else "")
    return Panel(text, title=title, title_align="left")


def _pieces(example: Example) -> list[str]:
    """The text of an example in pieces, which are given and learned by turns."""
    return example.rendered.pieces if example.rendered else [example.prompt, example.answer]


def _rendered_tokens(example: Example, tokenizer: Any) -> Panel:
    """The row of an example, whatever its length: each token as text, then as its number."""
    check_end_token(tokenizer)
    (row,) = encode_examples([example], tokenizer, max_tokens=sys.maxsize).to_list()
    ids = row["input_ids"]
    text = Text()
    for token, label in zip(ids, row["labels"], strict=True):
        style = "bold green" if label != IGNORED_LABEL else ""
        text.append(repr(tokenizer.decode([token]))[1:-1], style=style).append("¦", style="dim")
    text.append("\n" + " ".join(map(str, ids)))
    learned = sum(label != IGNORED_LABEL for label in row["labels"])
    return Panel(text, title=f"{len(ids)} tokens, {learned} of them learned", title_align="left")


def _length_table(examples: list[Example], tokenizer: Any | None) -> Table:
    """Lengths in tokens without BOS and EOS, or in words where there is no tokenizer."""
    table = Table("tokens" if tokenizer else "words", "mean", "p50", "p95", "max", box=None)
    for first, part in enumerate(("prompt", "answer")):
        counts = _lengths(["".join(_pieces(example)[first::2]) for example in examples], tokenizer)
        p50, p95 = np.percentile(counts, (50, 95), method="higher")
        table.add_row(part, f"{np.mean(counts):.1f}", str(p50), str(p95), str(max(counts)))
    return table


def _lengths(texts: Sequence[str], tokenizer: Any | None) -> list[int]:
    if tokenizer is None:
        return [len(text.split()) for text in texts]
    return [len(ids) for ids in token_ids(tokenizer, list(texts))]


def _load_tokenizer(path: str):
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(path, local_files_only=not hub_answers())
    except (OSError, ValueError) as error:
        raise UserError(f"no tokenizer at '{path}': {str(error).splitlines()[0]}") from None


def main() -> None:
    """Runs the command."""
    options = parse_options(take_plugins(sys.argv[1:]))
    COMMANDS[options.command](options)


COMMANDS = {"fetch": fetch_command, "list": list_command, "show": show_command}

if __name__ == "__main__":
    run_command(main)
