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

from dwellmoe.registry import Registry

PREDICTORS = Registry("predictor", __name__, "predictor")


def predictor_names() -> list[str]:
    return PREDICTORS.names()


def make_predictor(spec: str, layers: int, experts: int):
    """The predictor of `name:option=value,...`. UserError lists the choices."""
    kind, options = PREDICTORS.parse(spec)
    return kind(layers, experts, **options)
