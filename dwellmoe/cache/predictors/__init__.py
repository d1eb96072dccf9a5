"""Predictors of use, one file each; the folder is the registry. They say how likely each expert of a layer is
used the next time that layer runs. A file has

predictor    a class, made of (layers, experts, **options), with

    learn(used_TLE)          from recorded tokens of one request after the other; may do nothing
    follow(trace)            the decoded tokens of this trace will be watched; UserError if it cannot be
    start()                  a new request begins
    predict(layer) -> [E]    float64 in [0, 1], for the layer's next run
    watch(layer, used_E)     what the layer used; layers run in their order, token after token
    reach                    so many layers ahead of the last one watched it knows more than long before

Letters: T tokens, L layers, E experts a layer; `used` is bool.
"""

import importlib
import pkgutil

from dwellmoe.errors import unknown_name
from dwellmoe.registry import name_of, options_of


def predictor_names() -> list[str]:
    return sorted(found.name for found in pkgutil.iter_modules(__path__))


def make_predictor(spec: str, layers: int, experts: int):
    """The predictor of `name:option=value,...`. UserError lists the choices."""
    if name_of(spec) not in predictor_names():
        raise unknown_name("predictor", name_of(spec), predictor_names())
    kind = importlib.import_module(f"{__name__}.{name_of(spec)}").predictor
    return kind(layers, experts, **options_of("predictor", spec, kind))
