"""Knows how a choice with options is written, `name:option=value,...`; knows none of the choices."""

import inspect
from collections.abc import Callable

from dwellmoe.errors import UserError


def name_of(spec: str) -> str:
    """The name in `name:option=value,...`."""
    return spec.partition(":")[0]


def options_of(kind: str, spec: str, takes: Callable) -> dict[str, float | int | str]:
    """The options in `spec`, of the types that the keyword-only defaults of `takes` have.

    `kind` says in the messages what is chosen ("policy"). Raises UserError for an option that `takes` has not
    and for a value of another type.
    """
    parameters = inspect.signature(takes).parameters.values()
    defaults = {found.name: found.default for found in parameters if found.kind is found.KEYWORD_ONLY}
    options = {}
    for part in filter(None, spec.partition(":")[2].split(",")):
        key, _, value = part.partition("=")
        if key not in defaults:
            choices = ", ".join(defaults) or "none"
            raise UserError(f"{kind} '{spec}': unknown option '{key}': choose from {choices}")
        options[key] = _value(kind, spec, key, value, type(defaults[key]))
    return options


def _value(kind: str, spec: str, key: str, text: str, wanted: type):
    try:
        return wanted(text)
    except ValueError:
        name = wanted.__name__
        raise UserError(f"{kind} '{spec}': option '{key}' must be of type {name}, got '{text}'") from None
