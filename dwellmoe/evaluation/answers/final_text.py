"""Cuts a model's reasoning out of what it has written, so that a draft is never judged as its answer."""

import re

LONGEST = 300_000
"""Characters at the end of a text that are kept, so that none takes long."""
_NAME = r"(?:seed:)?(?:think|thinking|thoughts?|reasoning|scratchpad)"
# A tag behind a quotation mark belongs to a program or is spoken of.
_TAG = re.compile(
    r"[<\[◁](?<![\"'`].)(?:"
    rf"(?P<begin>{_NAME}>|THINK\]|think▷|\|begin_of_thought\|>|\|START_THINKING\|>|\|channel\|>analysis<\|message\|>)"
    rf"|/{_NAME}>|/THINK\]|/think▷|\|end_of_thought\|>|\|END_THINKING\|>|\|channel\|>final<\|message\|>)",
    re.DOTALL | re.IGNORECASE,
)


def final_text(written: str) -> str:
    """The text, or the end of a very long one, without its marked reasoning.

    The beginning of the reasoning may stand in the prompt: what comes before an end is reasoning, too. What
    comes after a beginning without an end is a draft that was cut off.
    """
    written = written[-LONGEST:]
    kept: list[str] = []
    start = 0
    reasons = False
    for tag in _TAG.finditer(written):
        if not tag["begin"]:
            kept = kept if reasons else []
            start, reasons = tag.end(), False
        elif not reasons:
            kept.append(written[start : tag.start()])
            reasons = True
    return "".join(kept) if reasons else "".join([*kept, written[start:]])
