"""Knows how what a model wrote becomes the program that judges it; runs nothing."""

import re

from dwellmoe.data.examples import Example
from dwellmoe.data.fields import fill
from dwellmoe.data.task import Task

_BLOCK = re.compile(r"```[ \t]*(?:[Pp]ython3?|py)?[ \t]*\n(.*?)(?:```|\Z)", re.DOTALL)


def program_of(task: Task, example: Example, written: str) -> str:
    """The task's program around an answer: its first code block that defines something, else all of it."""
    blocks = _BLOCK.findall(written)
    defining = [block for block in blocks if re.search(r"^[ \t]*(?:def|class) ", block, re.MULTILINE)]
    # A block begins a line of its own, whatever the program has before it.
    code = "\n" + (defining or blocks)[0] if blocks else written
    return fill(task.program, example.fields | {"code": code})
