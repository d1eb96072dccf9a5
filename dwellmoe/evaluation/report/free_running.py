"""What re-routing costs in text that a model writes by itself: the fields of a re-routing row of that text.

Letters: R requests.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from dwellmoe.cache.intervals import interval_of
from dwellmoe.evaluation.free_running import FreeText
from dwellmoe.evaluation.generation import repeated_ngrams
from dwellmoe.evaluation.measure import Measured
from dwellmoe.evaluation.report.comparison import Ratio
from dwellmoe.evaluation.rerouting import FreeRunning
from dwellmoe.evaluation.teacher_forced import Score

FREE_RUNNING = "free_running"
"""The kind of text, in the rows of a report."""
DEFINITION = (
    "text that each variant writes by itself after the prompts of the generated answers, its tokens drawn at "
    "the temperature from seed and request, so that errors of re-routing feed back. untouched: the same "
    "variant by its routers' own choice. perplexity_untouched: exp of the mean negative log-likelihood of "
    "the written tokens, end token included, by the untouched model; its ratio is to the text that base "
    "writes without re-routing. kl_own_path: mean over written tokens of KL in nats from the untouched "
    "model's next-token distribution to the re-routed one, both given the text written so far; kl_reference: "
    "the same over the first tokens, as many at most, of the reference text after the same prompts; "
    "feedback_factor: kl_own_path / kl_reference. repeated_4grams: share of 4-grams that occurred earlier in "
    "the same text. Hits and bytes are those of the writing; a text's last token is never run"
)


def free_running_fields(
    found: Measured, base: Measured, settings: FreeRunning, resamples: int
) -> dict[str, Any]:
    """The price of one variant's text, beside that of `base`, which wrote by its routers' own choice."""
    texts = list(found.free_texts.values())
    written = [text.written for text in texts]
    grams_R2 = np.array([repeated_ngrams(text.answer.token_ids) for text in texts])
    return {
        "tokens_at_most": settings.tokens,
        "temperature": settings.temperature,
        "seed": settings.seed,
        "requests": len(texts),
        "tokens": int(_tokens(written).sum()),
        **_perplexity(written, resamples).as_dict("perplexity_untouched"),
        **_perplexity_ratio(texts, list(base.free_texts.values()), resamples).as_dict(
            "perplexity_untouched_ratio"
        ),
        **Ratio.of(_divergence(written), _tokens(written), resamples).as_dict("kl_own_path"),
        **_reference_divergence(texts, resamples).as_dict("kl_reference"),
        **_feedback(texts, resamples).as_dict("feedback_factor"),
        **Ratio.of(grams_R2[:, 0], grams_R2[:, 1], resamples).as_dict("repeated_4grams"),
    }


def _perplexity(scores: Sequence[Score], resamples: int) -> Ratio:
    nats, interval = Ratio.of(_untouched_nll(scores), _tokens(scores), resamples)
    with np.errstate(over="ignore"):
        return Ratio(nats and float(np.exp(nats)), interval and np.exp(interval).tolist())


def _perplexity_ratio(texts: Sequence[FreeText], base: Sequence[FreeText], resamples: int) -> Ratio:
    """Of the texts of two variants after the same prompts."""
    both = [[text.written for text in each] for each in (texts, base)]
    nll_R2 = np.stack([_untouched_nll(scores) for scores in both], axis=1)
    tokens_R2 = np.stack([_tokens(scores) for scores in both], axis=1)
    return _statistic(lambda nats_B2: np.exp(nats_B2[:, 0] - nats_B2[:, 1]), nll_R2, tokens_R2, resamples)


def _reference_divergence(texts: Sequence[FreeText], resamples: int) -> Ratio:
    reference = [text.reference for text in texts]
    return Ratio.of(_divergence(reference), _tokens(reference), resamples)


def _feedback(texts: Sequence[FreeText], resamples: int) -> Ratio:
    both = [text.written for text in texts], [text.reference for text in texts]
    kl_R2 = np.stack([_divergence(scores) for scores in both], axis=1)
    tokens_R2 = np.stack([_tokens(scores) for scores in both], axis=1)
    if not kl_R2[:, 1].any():
        return Ratio(None, None)
    return _statistic(lambda kl_B2: kl_B2[:, 0] / kl_B2[:, 1], kl_R2, tokens_R2, resamples)


def _statistic(statistic, above_R2: np.ndarray, below_R2: np.ndarray, resamples: int) -> Ratio:
    """A statistic of two ratios of sums, and its interval."""
    with np.errstate(over="ignore"):
        value = statistic(above_R2.sum(axis=0, keepdims=True) / below_R2.sum(axis=0, keepdims=True))
    return Ratio(float(value[0]), interval_of(statistic, above_R2, below_R2, resamples))


def _tokens(scores: Sequence[Score]) -> np.ndarray:
    return np.array([score.tokens for score in scores])


def _divergence(scores: Sequence[Score]) -> np.ndarray:
    return np.array([score.divergence or 0.0 for score in scores])


def _untouched_nll(scores: Sequence[Score]) -> np.ndarray:
    return np.array([score.nll if score.untouched_nll is None else score.untouched_nll for score in scores])
