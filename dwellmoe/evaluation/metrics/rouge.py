"""ROUGE-1, -2 and -L of an answer against its reference, as F1 (Lin, 2004), with stemming.

English words are those of rouge_score: runs of letters and digits, stemmed. Letters of every script count;
in a script without blanks between words (Chinese, Japanese, Thai, ...) each character is a word. In a text
without any letter or digit each visible character is one, so that equal emoji or symbols count as equal.
"""

import unicodedata
from types import MappingProxyType

import regex
from nltk.stem.porter import PorterStemmer
from rouge_score.rouge_scorer import RougeScorer

from dwellmoe.cache.intervals import RESAMPLES, bootstrap_ci
from dwellmoe.evaluation import metrics
from dwellmoe.evaluation.answers.final_text import final_text

VARIANTS = {"rouge_1": "rouge1", "rouge_2": "rouge2", "rouge_l": "rougeL"}

_UNSPACED = r"\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}"
_WORD = regex.compile(rf"[{_UNSPACED}]\p{{M}}*|(?:(?![{_UNSPACED}])[\p{{L}}\p{{M}}\p{{Nd}}])+")
_VISIBLE_CHARACTER = regex.compile(r"(?![\s\p{Cc}])\X")
_SHORTEST_STEMMED = 4


class Words:
    """A tokenizer for rouge_score."""

    def __init__(self):
        self._stemmer = PorterStemmer()

    def tokenize(self, text: str) -> list[str]:
        """The words of a text, in small letters; English ones as rouge_score stems them."""
        text = unicodedata.normalize("NFC", text).lower()
        return [self._stem(word) for word in _WORD.findall(text)] or _VISIBLE_CHARACTER.findall(text)

    def _stem(self, word: str) -> str:
        return self._stemmer.stem(word) if word.isascii() and len(word) >= _SHORTEST_STEMMED else word


class Rouge(metrics.RequestMetric):
    """`rouge_1`, `rouge_2`, `rouge_l`: mean F1 over samples in [0, 1], each with its interval.

    `compute(predictions=, references=)`: generated texts, reference texts. Marked reasoning
    is no part of an answer.
    """

    COLUMNS = MappingProxyType({"predictions": "string", "references": "string"})

    def _compute(self, predictions, references, resamples=RESAMPLES):
        scorer = RougeScorer(list(VARIANTS.values()), tokenizer=Words())
        pairs = zip(references, map(final_text, predictions), strict=True)
        scores = [scorer.score(reference, written) for reference, written in pairs]
        row = {}
        for name, variant in VARIANTS.items():
            f1 = [score[variant].fmeasure for score in scores]
            row |= {name: sum(f1) / len(f1), f"{name}_ci95": bootstrap_ci(f1, resamples=resamples)}
        return row
