"""Finds the option that a text states as its answer, among those that its explanation names.

Statements by strength: "the answer is B" or a box; "B is correct"; "so it must be B"; "option B". What is
denied, asked or only supposed is no statement.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice

LONGEST = 6_000
"""Characters at the end of a text that are searched, so that no text takes long."""
NEAR = 40
"""Characters before and after a statement that may take it back."""

_NOUN = (
    r"(?:answers?|solution|conclusion|antwort|respuesta|réponse|risposta|resposta|ответ|答案|正解|答え|정답"
    r"|(?:correct|right|best|true|final|chosen)\s{1,3}(?:option|choice|letter|one|alternative|number))"
)
_BETWEEN = (
    r"(?:is|was|be|been|would|must|should|could|can|will|might|may|has|have|seems?|appears?|looks|to|likely|like"
    r"|probably|most|clearly|obviously|therefore|thus|then|hence|here|so|also|still|definitely|certainly|indeed"
    r"|simply|just|actually|in|fact|option|choice|letter|number|answers?|the|correct|right|best|final|given|by|of"
    r"|this|that|question|case|it|it['’]s|that['’]s|i|we|choose|chose|pick|select|think|believe|say|guess|go"
    r"|with|for|my|our|get|as|follows|following|text|textbf|mathrm|mathbf|boxed|but|rather|instead|leaving|leaves"
    r"|either|both|only|one|above|below|now|statement|是|为|為|应该是|選項|选项|选|は)(?![A-Za-z])"
)
_DENIAL = (
    r"(?:\w{0,8}n['’]t(?:\s{1,3}be)?|cannot(?:\s{1,3}be)?|not|never|neither|rul(?:es?|ed|ing)\s{1,3}out"
    r"|exclud(?:es?|ed|ing)|eliminat(?:es?|ed|ing)|except|unlike|than|instead\s{1,3}of)"
)
_CONCLUSION = (
    r"(?:\bi(?:['’]d|['’]ll|['’]m|\swould|\swill)?\s(?:choose|pick|select|take|say|guess|answer|go|going)"
    r"|\b(?:choose|choosing|pick|picking|select|selecting)"
    r"|\b(?:it|this|that|which)(?:['’]s|\sis|\smust\sbe|\shas\sto\sbe|\swould\sbe|\sshould\sbe)"
    r"|\bprefer|\bleft\swith|\bleav(?:ing|es)|\b(?:so|therefore|thus|hence|conclude|think|believe|guess)|选|選|=>|→)"
)
_IS = r"(?:is|must\sbe|would\sbe|has\sto\sbe|should\sbe|seems|appears|looks)"
_MORE = r"(?:(?:to\sbe|therefore|thus|clearly|the|most|only|our|my|likely|probably|indeed|actually)\s{1,3})"
_GAP = r"[^\w.;!?]{0,12}"
_LINK = re.compile(
    r"[:：=>→–—-]|\b(?:is|was|be|must|should|seems?|appears?)\b|['’]s\b|是|为|為|は|选", re.IGNORECASE
)
GOES_ON = r"\s{1,3}(?:(?:because|since|as|and\snot|but\snot|not|rather\sthan)\b|[—–-]\s)"
"""Follows an answer, and not an article or another word of one letter."""
_SUPPOSED = re.compile(
    r"(?:\b(?:if|whether|unless|suppos\w+|assum\w+|not|wrong|incorrect|false|tempting|common|popular|another"
    r"|other|possible|previous|first|initial)|n['’]t)\s{1,3}(?:\w{1,10}\s{1,3})?$",
    re.IGNORECASE,
)
_TAKEN_BACK = re.compile(
    r"[)\]*\"'}$]{0,4}(?:\s?\([^()\n]{0,30}\))?(?:\s{0,3}\?|\s{1,3}(?:fails\b|can(?:['’]t|not)\b"
    r"|(?:is|was|are|would\sbe|seems|looks)(?:n['’]t|(?:\s{1,3}\w{1,10})?\s{1,3}(?:not|wrong|incorrect|false|out))\b))",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Options:
    """Patterns for what can be stated. `alone` are forms, as small letters, which count only by themselves.

    `before` and `after` are look-arounds that hold at the ends of an option.
    """

    names: str
    alone: str | None = None
    before: str = r"(?<![A-Za-z0-9_À-ɏ])(?<![A-Za-z]['’])"
    after: str = r"(?![A-Za-z0-9_À-ɏ]|['’][A-Za-z])"

    @property
    def any(self) -> str:
        """One option, wherever it stands."""
        return rf"{self.before}(?:(?-i:{self.names})(?!(?<=I)[ \t]+[a-z])|{self._small}){self.after}"

    @property
    def in_prose(self) -> str:
        """One option among words: "A" and "I" before a small letter are words."""
        return rf"{self.before}(?-i:{self.names})(?!(?<=[AI])[ \t]+[a-z]){self.after}"

    @property
    def _small(self) -> str:
        ends = rf"(?=\W*\Z|[^\w\n]*\n|[).:,;\]\"'*}}]|{GOES_ON})"
        return rf"(?-i:{self.alone}){ends}" if self.alone else r"(?!)"

    @property
    def concluded(self) -> str:
        """One option after "so it is" and the like: a small one at an end or before a reason."""
        small = rf"|{self.before}(?-i:{self.alone})(?=\.?\s*\Z|\.?\s*\n|{GOES_ON})" if self.alone else ""
        return rf"(?:{self.in_prose}{small})"


def stated_option(text: str, options: Options, kinds: int = 4) -> str | None:
    """The option of the last statement of the strongest kind; "" if it names several, None without one.

    `kinds`: how many of the four kinds count.
    """
    text = text[-LONGEST:]
    corrected = corrected_option(text, options, min(kinds, 3))
    if corrected is not None:
        return corrected
    for pattern in islice(_patterns(options), kinds):
        if found := [match for match in re.finditer(pattern, text, re.IGNORECASE) if _holds(match, text)]:
            option = found[-1]["option"] or found[-1]["judged"]
            several = re.compile(_SEVERAL.format(any=options.any), re.IGNORECASE)
            return "" if several.match(text, found[-1].end()) else option
    return None


def corrected_option(text: str, options: Options, kinds: int = 3) -> str | None:
    """The option that a text states after it took back what it had stated; None if it took nothing back."""
    _, *corrections = _CORRECTED.split(text[-LONGEST:])
    for correction in reversed(corrections):
        found = re.match(_CORRECT.format(any=options.any), correction, re.IGNORECASE)
        corrected = found["option"] if found else stated_option(correction, options, kinds)
        if corrected is not None:
            return corrected
    return None


def denied(options: Options) -> str:
    """Pattern for options that a text denies: `neither A nor B`."""
    one_more = rf"[^\w.;!?]{{1,4}}(?:(?:n?or|and|either|option|choice|letter)\W{{1,3}}){{0,2}}{options.any}"
    return rf"(?>{_DENIAL}{one_more}(?:{one_more})*)"


_CORRECTED = re.compile(
    r"\b(?:wait|correction|scratch\sthat|on\s(?:second\sthought|reflection)|hold\son|oops|sorry|my\smistake"
    r"|i\s(?:made\san?\s(?:mistake|error)|meant|misread|was\swrong)|let\sme\s(?:reconsider|correct)|make\sthat"
    r"|actually(?=,?\s(?:it|the\sanswer)\b)|(?<=[.!?…\n—–][ \n])actually|(?<=[.!?…\n—–][ \n])no(?=\s?[,—–])"
    r"|(?<=hmm,\s)actually)\b",
    re.IGNORECASE,
)
"""Takes back what was stated before it, if a statement follows."""
_CORRECT = (
    r"\W{{0,4}}(?:(?:it|it['’]s|is|the|my|final|correct|right|answer|must|should|be|i|meant|say|option|choice)\W{{1,3}}){{0,6}}"
    r"(?P<option>{any})(?=[)\]*\"'}}]{{0,3}}\s{{0,3}}(?:[.!,;:]|\n|\Z))"
)
"""A correction that is little more than the option."""

_SEVERAL = (
    r"[)\]*\"'}}$]{{0,4}}(?:,?\s(?:or|and)\s|\s?[/&]\s?)(?:(?:option|choice)\s)?[(\[*\"']{{0,3}}{any}"
    r"(?![)\]*\"']{{0,3}}\s(?:is|are|was|fails|would|can))"
)


def _patterns(options: Options) -> Iterator[str]:
    one, concluded = options.any, rf"(?P<option>{options.concluded})"
    announced = (
        rf"(?<![A-Za-z])(?P<noun>{_NOUN})(?P<link>(?:{_GAP}(?:{denied(options)}|{_BETWEEN})){{0,8}}{_GAP})"
    )
    small = rf"|(?<=option\s)(?-i:{options.alone})" if options.alone else ""
    font = r"\\(?:text\w{0,4}|math\w{2,4}|bf|rm)\s?\{?"
    boxed = rf"\\f?boxed\s?\{{[^{{}}A-Za-z0-9]{{0,9}}(?:{font}[^{{}}A-Za-z0-9]{{0,9}}){{0,2}}"
    yield rf"(?:{announced}|{boxed}(?={one}\s?[).:,}}\s\\])(?!.\s?[=+*/^<]))(?P<option>{one})"
    yield (
        rf"{options.before}(?P<option>(?-i:{options.names}){small}){options.after}[)\]*.\"'}}$]{{0,4}}"
        rf"(?:\s?\([^()\n]{{0,60}}\)|:\s[^.\n]{{0,60}}?)?\s{{1,3}}{_IS}\s{{1,3}}{_MORE}{{0,4}}"
        r"(?:correct|right|best|better|answer|true|valid|it)(?![A-Za-z])"
        rf"|(?m:^)[^\w\n]{{0,6}}(?P<judged>{options.names})[).:\s–—-]{{1,4}}(?:correct|right|true|yes|✓|✔|✅)(?!\w)"
    )
    yield rf"{_CONCLUSION}(?:{_GAP}{_BETWEEN}){{0,4}}{_GAP}{concluded}"
    yield rf"\b(?:answer|option|choice|number|letter){_GAP}(?P<option>{one})"


def _holds(match: re.Match, text: str) -> bool:
    """Whether what stands before and after does not take the statement back."""
    found = match.groupdict()
    if found.get("judged"):
        return True
    noun = found.get("noun")
    if noun and not (_LINK.search(found["link"]) or re.search(r"\s", noun)):
        return False
    before = text[max(0, match.start() - NEAR) : match.start()]
    return not _SUPPOSED.search(before) and not _TAKEN_BACK.match(text, match.end())
