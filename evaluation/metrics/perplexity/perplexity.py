"""Knows perplexity from summed negative log-likelihoods; runs no model."""

import math

import datasets
import evaluate

from expert_cache.metrics import ratio_interval


class Perplexity(evaluate.Metric):
    """`perplexity` = exp(sum of nats / sum of tokens) of the reference answers, prompts masked, with its
    interval.

    `compute(nll=, tokens=)`: for each request the summed negative log-likelihood in nats and the tokens it is
    over.
    """

    def _info(self):
        sums = {"nll": datasets.Value("float64"), "tokens": datasets.Value("int64")}
        return evaluate.MetricInfo(
            description=str(__doc__),
            citation="",
            inputs_description=str(Perplexity.__doc__),
            features=datasets.Features(sums),
        )

    def _compute(self, nll, tokens):
        interval = ratio_interval(nll, tokens)
        return {
            "perplexity": _exp(sum(nll) / sum(tokens)),
            "perplexity_ci95": interval and [_exp(edge) for edge in interval],
        }


def _exp(nats_per_token):
    try:
        return math.exp(nats_per_token)
    except OverflowError:
        return math.inf
