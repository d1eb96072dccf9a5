"""Options as fields of dataclasses: default, help text, and which values each takes, checked in one place."""

import dataclasses
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, cast

from dwellmoe.errors import UserError

COUNT = 2**31 - 1
"""The most of anything that is counted."""
SEED = 2**32 - 1
"""The largest seed that numpy takes."""


@dataclass(frozen=True)
class Range:
    """Which numbers an option takes: from `least`, or only `above` a number, up to `most`; and those in
    `also`, which have a meaning of their own. Never NaN.
    """

    least: float | None = None
    most: float = math.inf
    above: float | None = None
    also: tuple[float, ...] = ()

    def __contains__(self, value: float) -> bool:
        enough = (self.least is None or value >= self.least) and (self.above is None or value > self.above)
        return value in self.also or (enough and value <= self.most)

    def __str__(self) -> str:
        bounds = {"at least": self.least, "above": self.above, "at most": self.most}
        said = [f"{words} {bound:.10g}" for words, bound in bounds.items() if bound not in (None, math.inf)]
        return ", or ".join([*(f"{value:g}" for value in self.also), " and ".join(said)])


def option(
    default: Any,
    help: str,
    *,
    least: float | None = None,
    most: float | None = None,
    above: float | None = None,
    also: tuple[float, ...] = (),
    choices: tuple[str, ...] = (),
    **metadata: Any,
) -> Any:
    """A dataclass field with a default, the text that `--help` shows, and the values that it takes.

    Numbers have a range: `least` or `above`, and `most`; `also` lists numbers outside it. Texts may have
    choices. `Settings` checks both.
    """
    if most is not None:
        metadata["range"] = Range(least, most, above, also)
    if choices:
        metadata["choices"] = choices
    return field(default=default, metadata={"help": help, **metadata})


class Settings:
    """Base of the dataclasses of options: a value outside its field's range or choices is a UserError."""

    def __post_init__(self):
        for entry in dataclasses.fields(cast(Any, self)):
            name = entry.metadata.get("aliases", [f"--{entry.name}"])[0]
            check_value(name, getattr(self, entry.name), entry.metadata)


def check_value(name: str, value: Any, metadata: Mapping[str, Any]) -> None:
    """UserError unless the option's value is in the range or one of the choices that its metadata hold."""
    if value is None:
        return
    if "range" in metadata:
        check_range(name, value, metadata["range"])
    if "json_only" in metadata and not isinstance(value, dict):
        raise UserError(f"{name} {value}: must be a JSON object, as in '{{\"name\": 1}}'")
    if "choices" in metadata and value not in metadata["choices"]:
        raise UserError(f"{name} {value}: choose from {', '.join(metadata['choices'])}")


def check_range(what: str, value: Any, allowed: Range) -> None:
    """UserError, which begins with `what` and the value, for one that is no number or is out of range."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise UserError(f"{what} {value}: must be a number, {allowed}")
    if value not in allowed:
        raise UserError(f"{what} {value}: must be {allowed}")


def split_list(text: str) -> list[str]:
    """The names of a comma list."""
    return [name.strip() for name in text.split(",") if name.strip()]


def split_off(words: Iterable[str], option: str, what: str) -> tuple[list[str], list[str]]:
    """The values of `--name VALUE` and `--name=VALUE` in a command line, and the other words.

    UserError, which calls the value `what`, where it is missing.
    """
    values: list[str] = []
    left: list[str] = []
    rest = iter(words)
    for word in rest:
        name, equals, value = word.partition("=")
        if name != option:
            left.append(word)
        elif value := value if equals else next(rest, ""):
            values.append(value)
        else:
            raise UserError(f"option {option}: {what} is missing")
    return values, left
