"""Predictors of use, one file each: how likely each expert of a layer is used the next time that layer runs.

A file of this folder exports its class as `predictor`; `dwellmoe.register_predictor` adds one from outside.
Letters: T tokens, L layers, E experts a layer; `used` is bool.
"""

from typing import Protocol

import numpy as np

from dwellmoe.cache.trace import RoutingTrace
from dwellmoe.registry import Registry

PREDICTORS = Registry("predictor", __name__, "predictor", skip=("watching",))


class Predictor(Protocol):
    """Made of (layers, experts, **options); layers run in their order, token after token.

    A method `predict_later(layer)` is optional: the probability of use in each run after the next one, which
    watermark placement then takes for these instead of `predict`'s.
    """

    horizon: int
    """For so many layers after the one that was watched last, it knows more than long before."""

    def learn(self, used_TLE: np.ndarray) -> None:
        """Takes recorded tokens, one request after the other; may do nothing."""

    def follow(self, trace: RoutingTrace) -> None:
        """The decoded tokens of this trace will be watched. UserError where that cannot be."""

    def start(self) -> None:
        """A new request begins."""

    def predict(self, layer: int) -> np.ndarray:
        """float64 [E] in [0, 1]: probability of use in the layer's next run."""
        ...

    def watch(self, layer: int, used_E: np.ndarray) -> None:
        """Takes what a layer used."""


def predictor_names() -> list[str]:
    """Every predictor there is."""
    return PREDICTORS.names()


def make_predictor(spec: str, layers: int, experts: int) -> Predictor:
    """The predictor of `name:option=value,...`. UserError lists the choices."""
    kind, options = PREDICTORS.parse(spec)
    return kind(layers, experts, **options)
