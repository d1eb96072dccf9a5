"""ROUGE-1, -2 and -L of an answer against its reference, as F1 (Lin, 2004), with stemming."""

from types import MappingProxyType

from rouge_score.rouge_scorer import RougeScorer

from dwellmoe.cache.intervals import RESAMPLES, bootstrap_ci
from dwellmoe.evaluation import metrics

VARIANTS = {"rouge_1": "rouge1", "rouge_2": "rouge2", "rouge_l": "rougeL"}


class Rouge(metrics.RequestMetric):
    """`rouge_1`, `rouge_2`, `rouge_l`: mean F1 over samples in [0, 1], each with its interval.

    `compute(predictions=, references=)`: generated texts, reference texts.
    """

    COLUMNS = MappingProxyType({"predictions": "string", "references": "string"})

    def _compute(self, predictions, references, resamples=RESAMPLES):
        scorer = RougeScorer(list(VARIANTS.values()), use_stemmer=True)
        pairs = zip(references, predictions, strict=True)
        scores = [scorer.score(reference, written) for reference, written in pairs]
        row = {}
        for name, variant in VARIANTS.items():
            f1 = [score[variant].fmeasure for score in scores]
            row |= {name: sum(f1) / len(f1), f"{name}_ci95": bootstrap_ci(f1, resamples=resamples)}
        return row
