"""Finds the program in an answer: in blocks of Markdown or HTML, or as bare lines among prose. Runs no code.

A fence in a string of the program, such as its docstring, does not end the block. The last part that defines
what the tests call is chosen, rather none that the text warns of, with the parts that define what it uses.
"""

import html
import re
import textwrap
from collections.abc import Iterator, Sequence
from itertools import islice
from keyword import kwlist, softkwlist
from typing import NamedTuple

LONGEST = 200_000
MOST_PARTS = 100
"""Of longer texts and of further parts nothing is looked at, so that no answer takes long."""
_PYTHON = re.compile(r"[ \t]*\{?[ \t]*\.?i?py(?:thon)?[\d.]*(?![\w+-])", re.IGNORECASE)
_OTHER_LANGUAGE = re.compile(r"[ \t]*\{?\.?[\w+#-]+")
_LANGUAGE_ALONE = re.compile(r"[ \t]*\{?\.?[\w+#.-]+(?:[ \t]*[{:=,].*|[ \t]+\w+=.*)?[ \t]*")
_DOCUMENT = re.compile(r"(?:(?<!`)`{3,}+|(?<!~)~{3,}+)[ \t]*(?:markdown|md)[ \t]*\n", re.IGNORECASE)
"""Begins a block that holds the whole answer, blocks and all."""
_MARK = re.compile(r"^[ \t]*(?:\[(/?)(?:PYTHON|CODE)\]|<(/?)(?:code|python)>)[ \t]*$", re.MULTILINE)
"""Begins or ends code, as some models were taught to."""
_HTML_BEGIN = re.compile(
    r"^[^\S\n]*(?:<pre\b[^>\n]*>\s{0,9}(?:<code\b[^>\n]*>)?|<code\b[^>\n]*>(?=[^\n<]*\n)"
    r"|<(?:solution|answer|program)>(?=[ \t]*\n))",
    re.MULTILINE | re.IGNORECASE,
)
_HTML_END = re.compile(r"(?:</code>\s{0,9})?</pre>|</(?:code|solution|answer|program)>", re.IGNORECASE)
_END_TOKEN = re.compile(r"(?:<\|\w{2,30}\|>|</s>|<eos>|<end_of_turn>)\s*\Z")
_INVISIBLE = re.compile("^[ \t\u00a0\u200b\u2060\ufeff]+", re.MULTILINE)
"""An indentation, which some models write with blanks that are none to Python."""
_PROMPT = re.compile(r"^(?:>>>|\.\.\.)(?: |$)")
_THIS = r"(?:this|these|that|it|so|following|like)"
_WARNING = re.compile(
    rf"\b(?:do\s?n['’]t|do\snot|never|avoid|should(?:n['’]t|\snot)|must\snot|not)\b[^\n]{{0,40}}\b{_THIS}\b"
    r"|\bnever\s\w{1,12}\W*$|\b(?:instead\sof|rather\sthan)\W*$|^\W*(?:wrong|incorrect|bad|buggy|broken)\b"
    r"|\b(?:is|was|be|are)\s(?:\w{1,12}\s)?(?:wrong|incorrect|buggy|bad|broken)\b|\bbuggy\b|[❌✗✘]"
    r"|\b(?:mistake|bug|pitfall|anti-?pattern|error)s?(?:\s(?:is|are|would\sbe))?\W*$"
    r"|\b(?:this|following|code|version|one|attempt)\s(?:will\s)?(?:fails?|breaks?|does(?:n['’]t|\snot)\swork)\b",
    re.IGNORECASE,
)
"""In what introduces a block: the block shows how not to do it."""
_REMEDY = re.compile(
    r"\b(?:above|previous|earlier|fix\w*|correct(?:ed|ion|ly)?|instead(?!\sof)|better|right|works)\b",
    re.IGNORECASE,
)
_WARNING_COMMENT = re.compile(
    r"\s*#\W*(?:wrong|bad|incorrect|buggy|do\s?n['’]t|do\snot|never|avoid)\b|\s*#\s*[❌✗✘]", re.IGNORECASE
)
_SPAN = re.compile(r"`([^`\n]+)`")
_LONG_STRING = r"(?P<long>\"\"\"|''')(?:\\.|(?!(?P=long))[^\\])*+(?:(?P=long)|(?P<unclosed>\Z))"
_STRING = (
    rf"(?<![^\W_])[rRbBfFuU]{{0,2}}(?:{_LONG_STRING}"
    r"|\"(?:\\.|[^\"\\\n])*+\"?|'(?:\\.|[^'\\\n])*+'?)"
)
_FENCE = r"(?:(?<!`)(?P<fence>`{3,}+)|^[ \t]*(?P<tildes>~{3,}+))(?P<info>[^`\n]*)$"
_INLINE = r"(?<!`)`{3,}+(?P<inline>[^`\n]+)`{3,}+"
_COMMENT = r"#(?:(?!`{3})[^\n])*+"
_OPENING = re.compile(rf"^[ \t]*[rRuU]?{_LONG_STRING}|{_INLINE}|{_FENCE}", re.DOTALL | re.MULTILINE)
_ANY_FENCE = re.compile(rf"{_INLINE}|{_FENCE}", re.MULTILINE)
_IN_PYTHON = re.compile(rf"{_STRING}|{_COMMENT}|{_FENCE}", re.DOTALL | re.MULTILINE)
_MASKED = re.compile(rf"{_STRING}|#[^\n]*", re.DOTALL)
_WORD = r"[^\W\d]\w*(?:['’]\w+)?"
_NO_KEYWORD = rf"(?!(?:{'|'.join((*kwlist, *softkwlist))})\b)"
_PROSE = re.compile(
    rf"(?![ \t])(?:(?:.*(?<![\w.'’])){_NO_KEYWORD}{_WORD} +{_NO_KEYWORD}{_WORD}|\*\*|[-*•] |\d+[.)] "
    rf"|{_NO_KEYWORD}{_WORD}(?:[.:]|::)\s*$|\.\. ?[a-z-]+::|[\\%]|(?:.*(?:[^\x00-\x7f\w]|\?|!(?!=))))"
)
"""Two names side by side, a bullet, a heading, a sign unknown to Python: no line of code at the margin."""
_DEFINITION = re.compile(
    r"^(?:(?:async[ \t]+)?(?:def|class)[ \t]+(\w+)|(\w+)[ \t]*(?::[^=\n]+)?=(?!=)"
    r"|(?:from[ \t]+[\w.]+[ \t]+)?import[ \t]+([^\n#]+))",
    re.MULTILINE,
)


class Part(NamedTuple):
    """A piece of the answer; its `language` is "" for a fence that names none, None without a fence."""

    code: str
    language: str | None
    warned_of: bool = False


def find_code(written: str, before: str, after: str) -> str:
    """The code in an answer, to stand between `before` and `after` in a program; the whole text if none."""
    text = _END_TOKEN.sub("", written.removeprefix("\ufeff").replace("\r\n", "\n").replace("\r", "\n"))
    if len(text) > LONGEST:
        return text
    text = _INVISIBLE.sub(
        lambda found: re.sub("[\u200b\u2060\ufeff]", "", found[0]).replace("\u00a0", " "), text
    )
    text = text if "```" in text or "~~~" in text else _fenced(text)
    fenced = _DOCUMENT.sub("", _MARK.sub(lambda mark: "```" if mark[1] or mark[2] else "```python", text))
    parts = [part for part in islice(_parts(fenced), MOST_PARTS) if part.code.strip()]
    wanted = _wanted(before, after)
    parts = [part._replace(code=_dedented(_without_prompts(part.code), wanted)) for part in parts]
    counts = [len(wanted & _defined(part.code)) for part in parts]
    if max(counts, default=0) == 0:
        spans = [span for span in _SPAN.findall(text) if wanted & _defined(span)]
        return spans[-1] if spans else _likeliest(parts) if parts else text
    chosen = max(range(len(parts)), key=lambda i: (counts[i], not parts[i].warned_of, _trust(parts[i]), i))
    return _with_what_it_uses(parts, chosen)


def _fenced(text: str) -> str:
    """The text, its blocks of HTML as blocks of Markdown."""
    pieces: list[str] = []
    position = 0
    while begin := _HTML_BEGIN.search(text, position):
        end = _HTML_END.search(text, begin.end())
        code = html.unescape(text[begin.end() : end.start() if end else None]).strip("\n")
        pieces += [text[position : begin.start()], f"\n```python\n{code}\n```\n"]
        position = end.end() if end else len(text)
    return "".join([*pieces, text[position:]])


def _without_prompts(code: str) -> str:
    """The input of an interactive session; other code as it is."""
    lines = code.strip("\n").split("\n")
    if not lines[0].startswith(">>>"):
        return code
    return "\n".join(_PROMPT.sub("", line) for line in lines if _PROMPT.match(line))


def _warns(introduction: str, code: str) -> bool:
    """Whether the last clause before a block, or its first comment, says that it shows how not to do it."""
    *_, clause = re.split(r"[.;,!?]\s+|\n", introduction.strip()[-200:])
    warned = _WARNING.search(clause) and not _REMEDY.search(clause)
    return bool(warned) or _WARNING_COMMENT.match(code) is not None


def _trust(part: Part) -> int:
    """A fence that allows Python over one for another language, and that over lines without a fence."""
    return 2 if part.language in ("python", "") else int(part.language is not None)


def _wanted(before: str, after: str) -> set[str]:
    """Names that a program expects of the code in its middle: begun before it, or called after it."""
    return set(re.findall(r"\bdef\s+(\w+)", before)) | (
        set(re.findall(r"\b(\w+)\(", after)) - set(re.findall(r"\b(?:def|class)\s+(\w+)", after))
    )


def _defined(code: str) -> set[str]:
    """Names that a piece of code defines or imports at its top level."""
    names: set[str] = set()
    for defined, assigned, imported in _DEFINITION.findall(code):
        names |= {defined, assigned, *re.findall(r"(\w+)\s*(?:,|$)", imported)}
    return names - {""}


def _dedented(code: str, wanted: set[str]) -> str:
    """The code, moved to the left margin if it then defines a wanted name; else it may be a body."""
    at_margin = textwrap.dedent(code)
    return at_margin if wanted & _defined(at_margin) else code


def _with_what_it_uses(parts: Sequence[Part], chosen: int) -> str:
    """The chosen part behind the parts that define a function, class or module which it uses and lacks."""
    code = parts[chosen].code
    for part in [*reversed(parts[:chosen]), *parts[chosen + 1 :]]:
        missing = set(re.findall(r"\w+", code)) - _defined(code)
        if part.language in ("python", "", None) and missing & _lasting(part.code):
            code = f"{part.code}\n{code}"
    return code


def _lasting(code: str) -> set[str]:
    """Names of functions, classes, modules and constants, not of variables."""
    functions = set(re.findall(r"^(?:async[ \t]+)?(?:def|class)[ \t]+(\w+)", code, re.MULTILINE))
    imported = _defined("\n".join(re.findall(r"^(?:from|import)[ \t][^\n]*", code, re.MULTILINE)))
    return functions | imported | {name for name in _defined(code) if name.isupper() and len(name) > 1}


def _likeliest(parts: Sequence[Part]) -> str:
    """The part that is code most likely, where none defines what is wanted."""

    def rank(part: Part) -> int:
        defines = re.search(r"^[ \t]*(?:def|class) ", part.code, re.MULTILINE) is not None
        if part.language is None:
            return 2 if part is parts[0] and _looks_like_code(part.code) else 5
        return {"python": 1, "": 3}.get(part.language, 4) - defines * (part.language in ("python", ""))

    return min(parts, key=rank).code


def _looks_like_code(code: str) -> bool:
    return re.match(rf"\n*(?:[ \t]|@|#|(?:{'|'.join(kwlist)})\b|\w+ *[=(\[.])", code) is not None


def _parts(text: str) -> Iterator[Part]:
    """Blocks and the bare code between them, in their order."""
    position = 0
    while found := _next_opening(text, position):
        yield from (Part(run, None) for run in _runs(text[position : found.start()]))
        if found["inline"]:
            yield Part(_PYTHON.sub("", found["inline"], count=1).strip(), "")
            position = found.end()
            continue
        begin = position
        end, position = _end_of_block(text, found)
        code = _without_margin(text[found.end() + 1 : end], _margin(text, found))
        language = _language(found["info"])
        # Prose may follow in a block that nothing ends.
        runs = _runs(code) if language in ("python", "") else [code]
        warned_of = _warns(text[begin : found.start()], code)
        yield from (Part(run, language, warned_of) for run in runs)
    yield from (Part(run, None) for run in _runs(text[position:]))


def _next_opening(text: str, position: int) -> re.Match | None:
    """The next fence or inline code that does not stand in a docstring of bare code."""
    for found in _OPENING.finditer(text, position):
        if found["unclosed"] is not None:
            return _ANY_FENCE.search(text, found.start())
        if not found["long"]:
            return found
    return None


def _end_of_block(text: str, opening: re.Match) -> tuple[int, int]:
    """Where the block's content ends, and where the text goes on."""
    language = _language(opening["info"])
    mark = (opening["fence"] or opening["tildes"])[0]
    shortest = 3 if language == "python" else len(opening["fence"] or opening["tildes"])
    pattern = _IN_PYTHON if language in ("python", "") else _ANY_FENCE
    start = min(opening.end() + 1, len(text))
    return _closing(pattern, text, start, mark, shortest) or (len(text), len(text))


def _closing(pattern: re.Pattern, text: str, start: int, mark: str, shortest: int) -> tuple[int, int] | None:
    for found in pattern.finditer(text, start):
        if pattern is _IN_PYTHON and found["unclosed"] is not None:
            return _closing(_ANY_FENCE, text, start, mark, shortest)
        fence = found["fence"] or found["tildes"]
        if not fence or fence[0] != mark or len(fence) < shortest:
            continue
        begins_line = not text[text.rfind("\n", 0, found.start()) + 1 : found.start()].strip(" \t>")
        opens_another = found["info"].strip() and _LANGUAGE_ALONE.fullmatch(found["info"])
        if begins_line or not found["info"].strip():
            return found.start(), found.start() if opens_another else found.start("info")
    return None


def _language(info: str) -> str:
    if _PYTHON.match(info):
        return "python"
    other = _OTHER_LANGUAGE.match(info)
    return other[0].strip().lower() if other else ""


def _margin(text: str, opening: re.Match) -> str:
    """What stands before a fence on its line, if it is blank, a quotation's `>` or a list's bullet."""
    line = text[text.rfind("\n", 0, opening.start()) + 1 : opening.start("info")].rstrip("`~")
    return line if re.fullmatch(r"[ \t>]*(?:(?:[-*+•]|\d+[.)])[ \t]+)?", line) else ""


def _without_margin(code: str, margin: str) -> str:
    quoted = margin.count(">")
    lines = code.split("\n")
    if quoted:
        return "\n".join(re.sub(rf"^(?:[ \t]*>){{1,{quoted}}} ?", "", line) for line in lines)
    ours = rf"^\t{{0,{margin.count(chr(9))}}} {{0,{len(margin)}}}"
    return "\n".join(re.sub(ours, "", line) for line in lines)


def _runs(text: str) -> Iterator[str]:
    """The text between its lines of prose."""
    masked = _MASKED.sub(lambda found: re.sub(r"[^\n]", ",", found[0]), text)
    run: list[str] = []
    for line, shown in zip(text.split("\n"), masked.split("\n"), strict=True):
        if _PROSE.match(shown):
            yield "\n".join(run)
            run = []
        else:
            run.append(line)
    yield "\n".join(run)
