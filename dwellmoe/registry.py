"""Named plug-ins: one `Registry` for each kind, filled by the files of a folder and by `register()`.

A plug-in is chosen by `name` or `name:option=value,...`.
"""

import importlib
import importlib.util
import inspect
import itertools
import pkgutil
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from types import ModuleType
from typing import Any

from dwellmoe.errors import UserError, first_line, unknown_name
from dwellmoe.options import split_off

Value = float | int | str


class Registry:
    """All plug-ins of one kind: every file of the folder `package`, and what users registered.

    `attribute` is the name under which a file of the folder exports its plug-in; None: the module itself is
    the plug-in. Files named in `skip` hold no plug-in.
    """

    def __init__(self, kind: str, package: str, attribute: str | None, skip: Iterable[str] = ()):
        self.kind = kind
        self._package = package
        self._attribute = attribute
        self._skip = {*skip}
        self._registered: dict[str, Any] = {}
        self._origins: dict[str, str] = {}

    def register(self, name: str) -> Callable[[Any], Any]:
        """A decorator that adds a plug-in under this name. UserError for a name that is taken."""
        if name in self.names():
            origin = self._origins.get(name, f"{self._package}.{name}")
            raise UserError(f"{self.kind} '{name}' is registered already, by {origin}")

        def add(plugin: Any) -> Any:
            self._registered[name] = plugin
            self._origins[name] = sys._getframe(1).f_code.co_filename
            return plugin

        return add

    def names(self) -> list[str]:
        """Every name there is, sorted."""
        return sorted({*self._files(), *self._registered})

    def registered_names(self) -> set[str]:
        """The names that users registered."""
        return {*self._registered}

    def get(self, name: str) -> Any:
        """The plug-in of that name. UserError with the nearest name, all names and the users' files."""
        if name in self._registered:
            return self._registered[name]
        if name not in self._files():
            raise unknown_name(self.kind, name, self.names(), self._origins)
        module = importlib.import_module(f"{self._package}.{name}")
        return getattr(module, self._attribute) if self._attribute else module

    def parse(
        self, spec: str, takes: Callable[[Any], Callable] | None = None
    ) -> tuple[Any, dict[str, Value]]:
        """`name:option=value,...` -> (plug-in, its options). UserError for an unknown name or option.

        `takes` gives the function whose keyword-only parameters are the options; default: the plug-in itself.
        """
        plugin = self.get(name_of(spec))
        return plugin, options_of(self.kind, spec, takes(plugin) if takes else plugin)

    def _files(self) -> list[str]:
        package = importlib.import_module(self._package)
        return [
            found.name for found in pkgutil.iter_modules(package.__path__) if found.name not in self._skip
        ]


REGISTRIES: dict[str, tuple[str, str]] = {
    "policy": ("dwellmoe.cache.policies.base", "POLICIES"),
    "predictor": ("dwellmoe.cache.predictors", "PREDICTORS"),
    "trace_format": ("dwellmoe.cache.formats", "FORMATS"),
    "family": ("dwellmoe.families.registry", "FAMILIES"),
    "strategy": ("dwellmoe.routing.strategies", "STRATEGIES"),
    "objective": ("dwellmoe.locality.objectives", "OBJECTIVES"),
}
"""What a user can register (`dwellmoe.register_<kind>`) -> where its registry is; imported only when used."""


def registry_of(kind: str) -> Registry:
    """The registry of a kind in `REGISTRIES`."""
    module, name = REGISTRIES[kind]
    return getattr(importlib.import_module(module), name)


_plugin_numbers = itertools.count()


def load_plugin(path: str | Path) -> ModuleType:
    """Imports a user's file so that what it registers can be named.

    UserError, in one line, for a file that is missing, raises, registers nothing or registers a name twice.
    """
    file = Path(path).resolve()
    if not file.is_file():
        raise UserError(f"--plugin {path}: no such file")
    before = _registered_names()
    name = f"dwellmoe_plugin_{next(_plugin_numbers)}_{file.stem}"
    spec = importlib.util.spec_from_file_location(name, file)
    if spec is None or spec.loader is None:
        raise UserError(f"--plugin {path}: not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # as importlib documents it; dataclasses look their module up there
    try:
        spec.loader.exec_module(module)
    except UserError as error:
        raise UserError(f"--plugin {path}: {error}") from None
    except Exception as error:
        raise UserError(f"--plugin {path}: {type(error).__name__}: {first_line(error)}") from error
    if _registered_names() == before:
        kinds = ", ".join(f"register_{kind}" for kind in REGISTRIES)
        raise UserError(f"--plugin {path}: registers nothing: call one of {kinds}")
    return module


def take_plugins(words: list[str], load: Callable[[str], object] = load_plugin) -> list[str]:
    """The words of a command line without `--plugin FILE`; `load` gets each path. UserError."""
    paths, left = split_off(words, "--plugin", "the path to a Python file")
    for path in paths:
        load(path)
    return left


def _registered_names() -> set[tuple[str, str]]:
    """(kind, name) of all that users registered; one that is not imported yet has none."""
    imported = [kind for kind, (module, _) in REGISTRIES.items() if module in sys.modules]
    return {(kind, name) for kind in imported for name in registry_of(kind).registered_names()}


def name_of(spec: str) -> str:
    """The name in `name:option=value,...`."""
    return spec.partition(":")[0]


def options_of(kind: str, spec: str, takes: Callable) -> dict[str, Value]:
    """The options in `spec`, of the types that the keyword-only defaults of `takes` have.

    `kind` is the word for what is chosen in messages ("policy"). Raises UserError for an option that `takes`
    does not have and for a value of another type.
    """
    parameters = inspect.signature(takes).parameters.values()
    defaults = {found.name: found.default for found in parameters if found.kind is found.KEYWORD_ONLY}
    options = {}
    for part in filter(None, spec.partition(":")[2].split(",")):
        key, _, value = part.partition("=")
        if key not in defaults:
            choices = ", ".join(defaults) or "none"
            raise UserError(f"{kind} '{spec}': unknown option '{key}': choose from {choices}")
        if key in options:
            raise UserError(f"{kind} '{spec}': option '{key}' is given twice")
        options[key] = _value(kind, spec, key, value, type(defaults[key]))
    return options


def _value(kind: str, spec: str, key: str, text: str, wanted: type) -> Value:
    try:
        value = wanted(text)
    except ValueError:
        name = wanted.__name__
        raise UserError(f"{kind} '{spec}': option '{key}' must be of type {name}, got '{text}'") from None
    endless = (key, text) == ("horizon", "inf")  # `lopt:horizon=inf` is `opt`
    if isinstance(value, int | float) and not abs(value) <= _LARGEST[type(value)] and not endless:
        raise UserError(f"{kind} '{spec}': option '{key}' must be finite and less, got '{text}'")
    return value


_LARGEST = {int: 2**32 - 1, float: 1e300, bool: 1}
"""Type of an option -> its largest size: no count or seed is larger, and no other number is infinite."""
