"""Perplexity from summed negative log-likelihoods."""

import math
from types import MappingProxyType

from dwellmoe.cache.intervals import RESAMPLES, ratio_interval
from dwellmoe.evaluation import metrics


class Perplexity(metrics.RequestMetric):
    """`perplexity` = exp(sum of nats / sum of tokens) of the reference answers, prompts masked, with its
    interval.

    `compute(nll=, tokens=)`: of each request the summed negative log-likelihood in nats, and its tokens.
    """

    COLUMNS = MappingProxyType({"nll": "float64", "tokens": "int64"})

    def _compute(self, nll, tokens, resamples=RESAMPLES):
        interval = ratio_interval(nll, tokens, resamples)
        return {
            "perplexity": _exp(sum(nll) / sum(tokens)),
            "perplexity_ci95": interval and [_exp(edge) for edge in interval],
        }


def _exp(nats_per_token):
    try:
        return math.exp(nats_per_token)
    except OverflowError:
        return math.inf
