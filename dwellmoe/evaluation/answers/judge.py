"""Finds the answer in generated text, in the form that the task requires, and judges it. Runs no code.

The forms are those of a task file: true_false, option_number, option_letter, final_letter, choice_text,
rationale, boxed, free_text. An answer in code becomes a program (`program_of`), which the sandbox runs.
"""

import re
from collections.abc import Callable, Sequence
from enum import Enum

from dwellmoe.data.examples import Example
from dwellmoe.data.fields import LETTERS, fill
from dwellmoe.data.task import Task
from dwellmoe.errors import unknown_name
from dwellmoe.evaluation.answers.maths import boxed, same_result
from dwellmoe.evaluation.answers.number_answers import parse_number, same_number


class Verdict(Enum):
    """Whether an answer is right; no answer at all differs from a wrong one."""

    RIGHT = "right"
    WRONG = "wrong"
    NO_ANSWER = "no answer"


def judge(written: str, reference: str, form: str, choices: Sequence[str] = ()) -> Verdict:
    """Whether generated text gives the answer of the reference. Raises UserError for an unknown form."""
    found = extract_answer(written, form, choices)
    if found is None:
        return Verdict.NO_ANSWER
    expected = extract_answer(reference, form, choices)
    return Verdict.RIGHT if expected is not None and _same(found, expected, form) else Verdict.WRONG


def extract_answer(written: str, form: str, choices: Sequence[str] = ()) -> str | None:
    """The answer in generated text, or None. `choices`, where known, bound what counts as an option.

    By form: `true` / `false`, an option's number or letter, a choice's text, the text after `####`, the
    content of the last box, or the whole text. Raises UserError for an unknown form.
    """
    if form not in EXTRACTORS:
        raise unknown_name("answer form", form, EXTRACTORS)
    return EXTRACTORS[form](written.strip(), choices)


def _same(found: str, expected: str, form: str) -> bool:
    if form == "boxed":
        return same_result(found, expected)
    if form == "rationale":
        number, expected_number = parse_number(found), parse_number(expected)
        if number and expected_number:
            return same_number(number, expected_number)
    return _plain(found) == _plain(expected)


def _plain(text: str) -> str:
    """The text without case, punctuation at the ends and doubled blanks."""
    return " ".join(text.casefold().strip(" \t\n.,;:!?()[]\"'*").split())


def _true_false(written: str, choices: Sequence[str]) -> str | None:
    text = re.sub(r"\btrue\s*(?:or|/)\s*false\b", "", written.casefold())
    found = re.search(r"\b(not\s+)?(true|false)\b", text) or re.match(r"()(yes|no)(?=\s*$|\s*[.,:;!])", text)
    if found is None:
        return None
    means_true = (found[2] in ("true", "yes")) != bool(found[1])
    return "true" if means_true else "false"


_ANNOUNCED = r"(?i:answer|option|choice|number|letter)(?i:\s+(?:is|would be|must be))?\s*[:=]?\s*[(\[\"'*]*"


def _option_number(written: str, choices: Sequence[str]) -> str | None:
    alone = r"(?<![\w.,$/-])(\d+)(?![\w%/]|[.,]\d)"
    found = re.search(_ANNOUNCED + alone, written) or re.search(alone, written)
    if found is None or not 1 <= int(found[1][:3]) <= (len(choices) or len(LETTERS)):
        return None
    return str(int(found[1]))


def _option_letter(written: str, choices: Sequence[str]) -> str | None:
    letters = LETTERS[: len(choices) or len(LETTERS)]
    patterns = (
        rf"^[(\[\"'*]*([{letters}{letters.lower()}])(?![\w'])[)\]\"'*]*(?=[.:,;)]|\s*\n|\s*$)",
        _ANNOUNCED + rf"([{letters}])(?![\w'])",
        rf"[(\[]([{letters}])[)\]]",
        # A bare capital in a sentence; "A" and "I" before a small letter are words.
        rf"(?<![\w'])([{letters}])(?![\w'])(?!(?<=[AI])\s+[a-z])",
    )
    for pattern in patterns:
        if found := re.search(pattern, written):
            return found[1].upper()
    return None


def _final_letter(written: str, choices: Sequence[str]) -> str | None:
    """The letter announced last, since reasoning comes before it; without one as `option_letter`."""
    letters = LETTERS[: len(choices) or len(LETTERS)]
    announced = _ANNOUNCED + rf"([{letters}])(?![\w'])" + rf"|\\boxed\{{(?:\\text\{{)?\(?([{letters}])\)?\}}"
    found = [one or other for one, other in re.findall(announced, written)]
    return found[-1] if found else _option_letter(written, choices)


def _boxed(written: str, choices: Sequence[str]) -> str | None:
    return boxed(written)


def _choice_text(written: str, choices: Sequence[str]) -> str | None:
    if not choices:
        return _plain(written) or None
    begun = [choice for choice in choices if _plain(choice) and _plain(written).startswith(_plain(choice))]
    return max(begun, key=len, default=None)


def _after_marker(written: str, choices: Sequence[str]) -> str | None:
    found = re.search(r"####\s*(\S[^\n]*)", written)
    found = found or re.search(r"(?i:answer is|answer:)\s*:?\s*(\S[^\n]*)", written)
    return found[1].strip() if found else None


def _free_text(written: str, choices: Sequence[str]) -> str | None:
    return written or None


EXTRACTORS: dict[str, Callable[[str, Sequence[str]], str | None]] = {
    "true_false": _true_false,
    "option_number": _option_number,
    "option_letter": _option_letter,
    "final_letter": _final_letter,
    "choice_text": _choice_text,
    "rationale": _after_marker,
    "boxed": _boxed,
    "free_text": _free_text,
}

_BLOCK = re.compile(r"```[ \t]*(?:[Pp]ython3?|py)?[ \t]*\n(.*?)(?:```|\Z)", re.DOTALL)


def program_of(task: Task, example: Example, written: str) -> str:
    """The task's program around the answer: its first code block with a definition, else the whole text."""
    blocks = _BLOCK.findall(written)
    defining = [block for block in blocks if re.search(r"^[ \t]*(?:def|class) ", block, re.MULTILINE)]
    # A code block starts on a line of its own, whatever the program has before it.
    code = "\n" + (defining or blocks)[0] if blocks else written
    return fill(task.program, example.fields | {"code": code})
