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
_WORD_AFTER = re.compile(
    r"(?<=[\d}])(?:\s+(?!and\b|or\b)[a-zA-Z]{3,}(?:\s[a-zA-Z]+)*|\s?(?:[cmk]m|k?g|lbs?|ft|m[lL])(?:\^\{?\d\}?)?)\.?$"
)
"""A unit without a command; letters side by side may be a product."""
_DEGREES_PERCENT = re.compile(r"\^?\{?\\circ\}?|\\degree|°|\\?%|[£€]")
_NAME = (
    r"(?:\\angle\s*|\\triangle\s*)?(?:[a-zA-Z]|[A-Z]{2,3}|\\(?:alpha|beta|gamma|theta|lambda|omega|phi)(?![a-zA-Z]))"
    r"(?:_(?:\w|\{\w{1,6}\}))?'{0,2}(?:\((?:\w|\\theta)\))?"
)
_TUPLE_OF_NAMES = r"\(\s*[a-zA-Z](?:_\w)?(?:\s*,\s*[a-zA-Z](?:_\w)?)+\s*\)"
_NAME_IN_FRONT = re.compile(rf"^({_NAME}|{_TUPLE_OF_NAMES})\s*(?:=|\\in(?![a-z]))")
_NAME_BEHIND = re.compile(rf"^([^=,]+)=\s*{_NAME}$")
_UNKNOWN = re.compile(r"(?<![\\a-zA-Z])(?![ei](?![a-zA-Z]))[a-zA-Z]")
"""A letter that is no constant, in what stands for no command."""
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
_RELATIONS = {
    "≤": re.compile(r"\\leq?(?:slant)?(?![a-zA-Z])"),
    "≥": re.compile(r"\\geq?(?:slant)?(?![a-zA-Z])"),
    "≠": re.compile(r"\\neq?(?![a-zA-Z])"),
    "<": re.compile(r"\\lt(?![a-zA-Z])"),
    ">": re.compile(r"\\gt(?![a-zA-Z])"),
}
_MIRRORED = str.maketrans("<>≤≥", "><≥≤")
_MIXED = re.compile(r"(?<![\w.}])(\d{1,20}) (\d{1,20})/(\d{1,20})(?![\w.])")
_REPEATING = re.compile(r"(?<![\w.])(\d{1,20})\.(\d{0,20})\\overline\s*\{(\d{1,20})\}(?!\d)")
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
    one, other = _plain(one), _plain(other)
    return _same(_value(one), _value(other)) or ("=" in one and "=" in other and _same(one, other))


def _plain(text: str) -> str:
    text = (
        (boxed(text) or text)
        .strip()
        .rstrip(".\\ ")
        .replace(r"\{", _SET[0])
        .replace(r"\}", _SET[1])
        .replace("{,}", "")
        .replace(r"\varnothing", r"\emptyset")
        .replace("~", " ")
    )
    text = _POWER_OF_TEN.sub(r"\1\\times 10^{\2}", text.translate(str.maketrans(_SIGNS)))
    text = _BLANK_AFTER_COMMA.sub(", ", re.sub(r",\s*\\!\s*", "", text))
    text = _LAYOUT.sub("", text).strip()
    text = re.sub(r"\\[dtc](frac|binom)(?![a-z])", r"\\\1", text).replace("\u2212", "-")
    text = _WORD_AFTER.sub("", _BOLD.sub("", _WORDS.sub(r"\1", _UNIT_AFTER.sub("", text))))
    text = _DEGREES_PERCENT.sub("", text).strip()
    for sign, pattern in _RELATIONS.items():
        text = pattern.sub(sign, text)
    return _REPEATING.sub(_repeating, _MIXED.sub(r"\1\\frac{\2}{\3}", text)).replace(
        "".join(_SET), r"\emptyset"
    )


def _value(text: str) -> str:
    """What a plain text states: without a name and commas between thousands."""
    text = _without_name(text)
    if _THOUSANDS.fullmatch(text):
        return re.sub("[, ]", "", text)
    if _SPACED_LIST.search(text):
        return _THOUSANDS_IN_LIST.sub(lambda number: number[0].replace(",", ""), text)
    return text


def _repeating(found: re.Match) -> str:
    """`0.1\\overline{6}` as a fraction."""
    whole, fixed, again = found.groups()
    divisor = 10 ** len(fixed) * (10 ** len(again) - 1)
    dividend = int(whole + fixed + again) - int(whole + fixed)
    return rf"\frac{{{dividend}}}{{{divisor}}}"


def _without_name(text: str) -> str:
    """The value of an assignment: without `x =` in front, also of further values of the same `x`, or `= x`
    behind a number. An equation of several unknowns, such as `x^2 + y^2 = r`, assigns nothing.
    """
    found = _NAME_IN_FRONT.match(text)
    if found is None:
        behind = _NAME_BEHIND.match(text)
        return behind[1].strip() if behind and not _UNKNOWN.search(behind[1]) else text
    again = rf"(,\s*|\s(?:and|or)\s+){re.escape(found[1])}\s*=\s*"
    value = re.sub(again, r"\1", text[found.end() :]).strip()
    if "=" not in value:
        return value
    several = len(_split(value, ",")) > 1  # values of several names
    return text if several else _split(value, "=")[-1]


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
        (_inequality, True),
    ):
        parts, others = split(one), split(other)
        if parts or others:
            return _match(parts, others, one[0] != _SET[0] if ordered is None else ordered)
    sides, others = _split(one, "="), _split(other, "=")
    if len(sides) > 1 and len(others) > 1:
        return _match(sides, others, ordered=False)
    if len(sides) > 1 or len(others) > 1:
        return _same_as_last(sides, others) if len(others) == 1 else _same_as_last(others, sides)
    try:
        return same_values(evaluate(one), evaluate(other))
    except Unreadable:
        return False


def _same_as_last(sides: list[str], other: list[str]) -> bool:
    """Whether a true equation, such as `2 + 3 = 5`, ends with the other result."""
    *others, last = sides
    return all(_same(side, last) for side in others) and _same(last, other[0])


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


def _inequality(text: str) -> list[str]:
    """The relations of an inequality and its sides, written with the smaller one first."""
    relations = "".join(re.findall(r"[<>≤≥≠]", text))
    if not relations:
        return []
    sides = [side.strip() for side in re.split(r"[<>≤≥≠]", text)]
    if relations[0] in ">≥":
        relations, sides = relations[::-1].translate(_MIRRORED), sides[::-1]
    return [f"relations {[*map(ord, relations)]}", *sides]


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
