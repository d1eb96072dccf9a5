"""Tells whether two mathematical results written in LaTeX are the same.

Expressions are the same if they have the same values at fixed values of their letters, so `x(x+1)` is `x^2+x`
without any algebra. What is not an expression is compared as text without layout.
"""

import re

from dwellmoe.evaluation.answers.expressions import LONGEST, Unreadable, evaluate, same_values

MOST_UNORDERED = 12
"""Sets and lists up to this length are matched in any order; longer ones must have the same order."""
_LAYOUT = re.compile(
    r"\\(?:left|right|displaystyle|textstyle|[bB]ig[lr]?|limits|quad|qquad|bf|rm|it)(?![a-zA-Z])"
    r"|(?<!\\)\\[!,;: ()\[\]]|\\?\$|~"
)
_WORDS = re.compile(r"\\(?:text|textbf|textit|mathrm|mathbf|mbox|boldsymbol|bm|pmb)\s*\{([^{}]*)\}")
_BOLD = re.compile(r"\\(?:boldsymbol|bm|pmb|mathbf)(?=\s*\{)")
_POWER_OF_TEN = re.compile(
    r"(?<![\w.\\^])(\d+\.\d+(?=[eE][-+]?\d)|1(?=[eE][-+]?\d)|\d+(?=[eE]\d))[eE]([-+]?\d+)(?![\w.])"
)
"""Not `2e-1`, which is twice Euler's number, less one."""
_SIGNS = {
    sign: rf"\{name} "
    for sign, name in zip(
        "παβγθλωφ∞√×·÷±∪",
        [
            "pi",
            "alpha",
            "beta",
            "gamma",
            "theta",
            "lambda",
            "omega",
            "phi",
            "infty",
            "sqrt",
            "times",
            "cdot",
            "div",
            "pm",
            "cup",
        ],
        strict=True,
    )
}
_UNIT_AFTER = re.compile(r"(?<=[\d}\s])\s*\\(?:text|mbox|mathrm)\s*\{\s*[a-zA-Z][^{}]*\}(?:\^\{?\d\}?)?$")
_DEGREES_PERCENT = re.compile(r"\^?\{?\\circ\}?|\\degree|°|\\?%")
_NAME_IN_FRONT = re.compile(r"^([a-zA-Z](?:_\w|\([a-z]\))?)\s*(?:=|\\in(?![a-z]))")
_NAME_BEHIND = re.compile(r"^([^=,]+)=\s*[a-zA-Z](?:_\w|\([a-z]\))?$")
_THOUSANDS = re.compile(r"-?\d{1,3}(?:(?:,\d{3})+|(?: \d{3})+)(?:\.\d+)?")
_THOUSANDS_IN_LIST = re.compile(r"(?<![\d,.])\d{1,3}(?:,\d{3})+(?![\d]|,\d)")
_BLANK_AFTER_COMMA = re.compile(r",(?:\\[ ;:,]|~|\\q?quad(?![a-zA-Z]))+")
_SPACED_LIST = re.compile(r",\s|\s(?:and|or)\s")
"""Separates members by more than a comma, so that commas without a blank may separate thousands."""
_EMPTY = re.compile(
    r"\\[hv]?(?:phantom|space)\*?\s*\{[^{}]*\}|\\(?:underline|text\w{0,4}|math\w{2,4}|mbox|left|right|displaystyle"
    r"|textstyle|q?quad|thinspace|[lc]?dots|square|Box)(?![a-zA-Z])|\\[!,;:> _]|[\s{}$~._?\u2026]|\\\Z"
)
"""What takes up room in a box and is no result."""
_SET = ("\u27e8", "\u27e9")
"""Stand for the escaped braces of a set, apart from the braces that only group."""
_DEPTH = {**dict.fromkeys("([{" + _SET[0], 1), **dict.fromkeys(")]}" + _SET[1], -1)}
_MATRIX = re.compile(r"^\\begin\{([a-z]*matrix)\}(.*)\\end\{\1\}$", re.DOTALL)


def boxed(text: str) -> str | None:
    r"""The content of the last `\boxed{...}` (or `\boxed 5`) of a text; None without one or if empty."""
    *_, last = re.split(r"\\f?boxed(?![a-zA-Z])|\\fbox(?![a-zA-Z])", "\0" + text)
    content = None if last.startswith("\0") else _content(last.lstrip())
    return content if content and _EMPTY.sub("", content) else None


def _content(text: str) -> str | None:
    """What stands in the braces that a text begins with, or its first word."""
    if not text.startswith("{"):
        return re.split(r"[\s$]", text, maxsplit=1)[0]
    depth = 0
    for brace in re.finditer(r"\\.|[{}]", text, re.DOTALL):
        depth += (brace[0] == "{") - (brace[0] == "}")
        if depth == 0:
            return text[1 : brace.start()].strip()
    return None


def same_result(one: str, other: str) -> bool:
    """Whether two results are the same number, expression, tuple, interval, set, matrix or word.

    A unit after a number, degree and percent signs, and `x =` in front or `= x` behind are ignored. Brackets
    count, and so does the order, except in sets, unions, bare lists (the roots of an equation) and the two
    sides of an equation.
    """
    if max(len(one), len(other)) > LONGEST:
        return one.split() == other.split()
    return _same(_plain(one), _plain(other))


def _plain(text: str) -> str:
    text = (
        text.strip()
        .rstrip(".\\ ")
        .replace(r"\{", _SET[0])
        .replace(r"\}", _SET[1])
        .replace("{,}", "")
        .replace("~", " ")
    )
    text = _POWER_OF_TEN.sub(r"\1\\times 10^{\2}", text.translate(str.maketrans(_SIGNS)))
    text = _BLANK_AFTER_COMMA.sub(", ", re.sub(r",\s*\\!\s*", "", text))
    text = _LAYOUT.sub("", text).strip()
    text = re.sub(r"\\[dtc]frac(?![a-z])", r"\\frac", text).replace("\u2212", "-")
    text = _BOLD.sub("", _WORDS.sub(r"\1", _UNIT_AFTER.sub("", text)))
    text = _without_name(_DEGREES_PERCENT.sub("", text).strip())
    if _THOUSANDS.fullmatch(text):
        return re.sub("[, ]", "", text)
    if _SPACED_LIST.search(text):
        return _THOUSANDS_IN_LIST.sub(lambda number: number[0].replace(",", ""), text)
    return text


def _without_name(text: str) -> str:
    """The text without `x =` in front, also of the further values of the same `x`, or `= x` behind."""
    found = _NAME_IN_FRONT.match(text)
    if found is None:
        return _NAME_BEHIND.sub(r"\1", text).strip()
    again = rf"(,\s*|\s(?:and|or)\s+){re.escape(found[1])}\s*=\s*"
    return re.sub(again, r"\1", text[found.end() :]).strip()


def _same(one: str, other: str) -> bool:
    if _bare(one) == _bare(other):
        return True
    if not one or not other:
        return False
    for split, ordered in (
        (_union, False),
        (_matrix, True),
        (_members, None),
        (_list, False),
        (_sides, False),
    ):
        parts, others = split(one), split(other)
        if parts or others:
            return _match(parts, others, one[0] != _SET[0] if ordered is None else ordered)
    try:
        return same_values(evaluate(one), evaluate(other))
    except Unreadable:
        return False


def _bare(text: str) -> str:
    """The text without blanks and without braces around one sign; words without case."""
    text = re.sub(r"\{(\w)\}", r"\1", "".join(text.split()))
    return text.casefold() if text.isalpha() and len(text) > 1 else text


def _match(parts: list[str], others: list[str], ordered: bool) -> bool:
    if len(parts) != len(others):
        return False
    if ordered or len(parts) > MOST_UNORDERED:
        return all(map(_same, parts, others))
    left = list(others)
    for part in parts:
        match = next((i for i, candidate in enumerate(left) if _same(part, candidate)), None)
        if match is None:
            return False
        del left[match]
    return True


def _union(text: str) -> list[str]:
    parts = _split(text, r"\cup")
    return parts if len(parts) > 1 else []


def _matrix(text: str) -> list[str]:
    """Shape and cells, row by row."""
    found = _MATRIX.match(text)
    if found is None:
        return []
    rows = [row.split("&") for row in re.split(r"\\\\", found[2]) if row.strip()]
    return [str([len(row) for row in rows]), *(cell.strip() for row in rows for cell in row)]


def _members(text: str) -> list[str]:
    """The brackets and the members of a tuple, interval or set; [] for `(x)` and `(x)(y)`."""
    if text[:1] not in tuple("([" + _SET[0]) or text[-1:] not in tuple(")]" + _SET[1]):
        return []
    parts = _split(text[1:-1], ",")
    closed_early = any(sum(_DEPTH.get(sign, 0) for sign in text[:i]) < 1 for i in range(1, len(text)))
    if closed_early or (len(parts) == 1 and text[0] != _SET[0]):
        return []
    return [f"brackets {text[0]} {text[-1]}", *(_signs(parts) if text[0] == _SET[0] else parts)]


def _list(text: str) -> list[str]:
    parts = _signs(_split(re.sub(r",?\s(?:and|or)\s", ",", text), ","))
    return parts if len(parts) > 1 else []


def _sides(text: str) -> list[str]:
    """The sides of an equation."""
    parts = _split(text, "=")
    return parts if len(parts) > 1 else []


def _signs(parts: list[str]) -> list[str]:
    """The parts, `a \\pm b` as the two values it stands for."""
    upper = [part.replace(r"\pm", "+").replace(r"\mp", "-") for part in parts]
    lower = [part.replace(r"\pm", "-").replace(r"\mp", "+") for part in parts]
    return [*upper, *(low for low, high in zip(lower, upper, strict=True) if low != high)]


def _split(text: str, separator: str) -> list[str]:
    """The parts of a text between separators outside all brackets."""
    parts = []
    depth = 0
    start = 0
    for i, sign in enumerate(text):
        depth += _DEPTH.get(sign, 0)
        if depth == 0 and text.startswith(separator, i):
            parts.append(text[start:i])
            start = i + len(separator)
    return [part.strip() for part in [*parts, text[start:]]]
