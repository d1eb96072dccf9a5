"""Finds the answer in generated text, in the form that the task requires, and judges it. Runs no code.

The forms are those of a task file: true_false, option_number, option_letter, final_letter, choice_text,
rationale, boxed, free_text. An answer in code becomes a program (`program_of`), which the sandbox runs.
"""

import re
import unicodedata
from collections.abc import Callable, Sequence
from enum import Enum

from dwellmoe.data.examples import Example
from dwellmoe.data.fields import LETTERS
from dwellmoe.data.task import Task
from dwellmoe.data.templates import fill
from dwellmoe.errors import unknown_name
from dwellmoe.evaluation.answers.code_blocks import find_code
from dwellmoe.evaluation.answers.final_text import final_text
from dwellmoe.evaluation.answers.maths import boxed, same_result
from dwellmoe.evaluation.answers.number_answers import parse_number, same_number
from dwellmoe.evaluation.answers.stated import (
    GOES_ON,
    LONGEST,
    Options,
    corrected_option,
    denied,
    stated_option,
)


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
    return EXTRACTORS[form](final_text(written).strip(), choices)


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


_TRUTHS = Options("(?i:true|false|yes|no)", before=r"(?<!\w)", after=r"(?!\w)")
_NOT = (
    r"(?:\bnot(?!\s+only)|\b(?:is|are|was|were|do|does|did|would|could|should|ca|wo|has|have|had|ai)n['’]?t|\bcannot"
    r"|\bnever|\bhardly"
    r"|(?<!no )(?<!without )(?<!beyond )(?<!without a )(?<!n['’]t )(?<!not )(?<!never )\bdoubt"
    r"|\bdeny|\bdisagree|\bdisbelieve"
    r"|\b(?:wrong|incorrect|mistaken)\s+to\s+(?:say|claim|think|believe)|\bopposite|\bfurther\s+from"
    r"|\bno\s+longer|\bfar\s+from|\banything\s+but|\bnothing|\bnone)"
    r"(?:\W{1,3}(?:the|case|that|it|it['’]s|this|is|be|being|really|quite|entirely|exactly|necessarily|always"
    r"|strictly|completely|at|all|think|believe|say|statement|claim|a|fully|actually|holds?|seems?|appears?|looks?"
    r"|like|to|about|of)\b){0,8}\W{1,3}"
)
_UNDECIDED = re.compile(
    r"\btrue\s{0,3}(?:n?or|/)\s{0,3}false\b|\b(?:whether|(?:sure|know|tell|clear|say)\s+if)\b[^.,;:!?\n]{0,60}"
)


def _true_false(written: str, choices: Sequence[str]) -> str | None:
    """The truth stated, else a yes or no in front or at the end, else the first of both, with its denial."""
    text = re.sub(r"\buntrue\b", "false", _UNDECIDED.sub("", written[:LONGEST].casefold()))
    plain = re.match(r"\W{0,9}(yes|no)(?=\s*$|\s{0,3}[.,:;!])", text) or re.search(
        r"[,.:;!?\n]\s{0,3}(yes|no)\W{0,3}\Z", text
    )
    found = stated_option(text, _TRUTHS, kinds=1) or (plain and plain[1])
    if found:
        return "true" if found in ("true", "yes") else "false"
    word = re.search(rf"({_NOT})?\b(true|false)\b", text)
    if word is None:
        return None
    return "true" if (word[2] == "true") != bool(word[1]) else "false"


def _option_number(written: str, choices: Sequence[str]) -> str | None:
    """The number stated, else that of the choice whose text is, else the first one that stands alone."""
    text = _NUMBERED.sub(r"\g<0> ", unicodedata.normalize("NFKC", written[:LONGEST]))
    most = len(choices) or len(LETTERS)
    numbers = Options(
        "|".join(map(str, range(1, most + 1))), before=r"(?<![\w.,$/-])", after=r"(?![\w%/]|[.,]\d)"
    )
    found = stated_option(_NEXT_QUESTION.split(text)[0], numbers)
    if found is not None:
        return found or None
    if (position := _stated_choice(text, choices, kinds=2)) is not None:
        return str(position + 1)
    alone = re.search(rf"{numbers.before}(\d+){numbers.after}(\s?(?:or|and|/|&)\s?\d)?", text)
    return alone[1] if alone and not alone[2] and re.fullmatch(numbers.names, alone[1]) else None


_NUMBERED = re.compile(r"\b(?:solution|answer|option|choice|ending)(?=\d)", re.IGNORECASE)
_NEXT_QUESTION = re.compile(
    r"\n\s{0,9}(?:question|problem|goal|context|sentence|q)\b[ \d]{0,4}[:.]", re.IGNORECASE
)
"""Where a model that does not stop goes on with a question of its own."""


def _letters(choices: Sequence[str]) -> Options:
    letters = LETTERS[: len(choices) or len(LETTERS)]
    return Options(f"[{letters}]", alone=f"[{letters.lower()}]")


def _option_letter(written: str, choices: Sequence[str]) -> str | None:
    """The letter of a correction, else the one in front, else the one stated, else the first alone."""
    options = _letters(choices)
    text = _NEXT_QUESTION.split(unicodedata.normalize("NFKC", written[:LONGEST]))[0]
    corrected = corrected_option(text, options)
    if corrected is None and (leading := _leading_letter(text, options)):
        return leading
    stated = stated_option(text, options) if corrected is None else corrected
    return _letter_by_text(text, choices, options) if stated is None else stated.upper() or None


def _final_letter(written: str, choices: Sequence[str]) -> str | None:
    """The letter stated last, since reasoning comes before it; else the first one, else the first alone."""
    options = _letters(choices)
    stated = stated_option(unicodedata.normalize("NFKC", written[-LONGEST:]), options)
    if stated is not None:
        return stated.upper() or None
    text = unicodedata.normalize("NFKC", written[:LONGEST])
    return _leading_letter(text, options) or _letter_by_text(text, choices, options)


def _leading_letter(text: str, options: Options) -> str | None:
    letter = rf"({options.names}|{options.alone})"
    text = re.sub(rf"\A\W{{0,3}}A:\s{{0,3}}(?=\W?{letter}\W{{0,3}}\Z)", "", text)  # A: for "answer"
    if re.match(_DENIED_LINE.format(letter=letter), text, re.IGNORECASE):
        return None
    end = rf"(?!\w|['’]\w)[)\]\"'*]{{0,3}}(?:(?=[.:,;)]|\s{{0,3}}\n|\s*$)|(?={GOES_ON}))"
    found = re.match(rf"[^\w\\]{{0,9}}{letter}{end}", text)
    return found[1].upper() if found else None


_DENIED_LINE = (
    r"\W{{0,6}}{letter}[).:\s–—-]{{1,4}}(?:(?:incorrect|wrong|false|no)\b|✗|✘|❌)[^\n]*\n(?:[^\n]*\n)?"
    r"\W{{0,6}}{letter}[).:\s–—-]"
)
"""The first of several options that are judged one a line."""


def _letter_by_text(text: str, choices: Sequence[str], options: Options) -> str | None:
    """The letter of the choice whose text is stated as the answer; else the first letter alone."""
    stated = _stated_choice(text, choices, kinds=2)
    lone = _lone_letter(text, options) if stated is None else None
    position = _stated_choice(text, choices, kinds=3) if lone is None and stated is None else stated
    return lone if position is None else LETTERS[position]


def _stated_choice(text: str, choices: Sequence[str], kinds: int) -> int | None:
    """The position of the choice whose text is stated as the answer, or is all of it."""
    texts = [_plain(unicodedata.normalize("NFKC", choice)) for choice in choices]
    written = _plain(text)
    if written and texts.count(written) == 1:
        return texts.index(written)
    named = [
        each for each in texts if texts.count(each) == 1 and (each[1:] or each.isdigit()) and each in written
    ]
    if not named or len(choices) > len(LETTERS):
        return None
    names = "|".join(
        r"\s+".join(map(re.escape, each.split())) for each in sorted(named, key=len, reverse=True)
    )
    marked = re.sub(
        rf"(?i)(?<![\w.,/-])(?:{names}){_END_OF_CHOICE}",
        lambda found: chr(FIRST_MARK + texts.index(_plain(found[0]))),
        text,
    )
    stated = stated_option(marked, _MARKS, kinds)
    return ord(stated) - FIRST_MARK if stated else None


FIRST_MARK = ord("\u16a0")
_MARKS = Options(f"[{chr(FIRST_MARK)}-{chr(FIRST_MARK + len(LETTERS) - 1)}]", before="", after="")
"""Letters without case, which stand for choices, so that the patterns are the same for all requests."""
_END_OF_CHOICE = rf"(?![\w%/^]|[.,]\d)(?=\s*(?:[^\w\s(]|\n|\Z|(?:or|nor|but)\b|{GOES_ON}))"
"""Not within a longer text, as "blue" in "blue whales"."""


def _lone_letter(text: str, options: Options) -> str | None:
    """The first letter in brackets or among words, rather outside a question; else a small one at the end."""
    patterns = (
        rf"[(\[]({options.names})[)\]]",
        rf"(?<!\bnot )(?<!\bNot )({options.in_prose})",
        rf"(?<!\w)\(({options.alone})\)",
        rf":\s{{0,3}}({options.alone})\W{{0,3}}\Z",
    )
    text = re.sub(denied(options), "", text, flags=re.IGNORECASE)
    answered = _QUESTION.sub("", text)
    found = (re.search(pattern, part) for part in (answered, text) for pattern in patterns)
    return next((match[1].upper() for match in found if match), None)


_QUESTION = re.compile(r"[^.!?\n]{0,80}\?")


def _boxed(written: str, choices: Sequence[str]) -> str | None:
    return boxed(written)


def _choice_text(written: str, choices: Sequence[str]) -> str | None:
    if not choices:
        return _plain(written) or None
    text = _plain(written)
    begun = [choice for choice in choices if _plain(choice) and _begins(text, _plain(choice))]
    return max(begun, key=len, default=None)


def _begins(text: str, choice: str) -> bool:
    """Whether a text begins with a choice, and not with a longer word."""
    goes_on = re.match(r"[a-z0-9]", text[len(choice) :]) and re.search(r"[a-z0-9]$", choice)
    return text.startswith(choice) and not goes_on


def _after_marker(written: str, choices: Sequence[str]) -> str | None:
    found = re.search(r"####\s*(\S[^\n]*)", written)
    found = found or re.search(r"(?i:answer (?:is|would be|must be)|answer:)\s*:?\s*(\S[^\n]*)", written)
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


def program_of(task: Task, example: Example, written: str) -> str:
    """The task's program around the code of an answer (`find_code`)."""
    before, _, after = fill(task.program, example.fields | {"code": _CODE}).partition(_CODE)
    # A code block starts on a line of its own, whatever the program has before it.
    text = final_text(written)
    code = find_code(text, before, after)
    if code != text:
        code = "\n" + code
    imports = "".join(_FUTURE.findall(code)) if before.strip() else ""
    return imports + before + (_FUTURE.sub("", code) if imports else code) + after.replace(_CODE, code)


_CODE = "\0code\0"
_FUTURE = re.compile(r"^from __future__ import [^\n]+\n?", re.MULTILINE)
"""Python wants these at the beginning of a program."""
