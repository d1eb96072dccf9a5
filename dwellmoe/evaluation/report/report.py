"""Knows what a report says and in which words each number was counted; does not know how it looks.

Its rows (`locality`, `cache`, `quality`) hold plain floats, and None where there is nothing to say.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from dwellmoe.evaluation.generation import repeated_share
from dwellmoe.evaluation.measure import Measured
from dwellmoe.evaluation.report.cache_rows import ACCESS, cache_rows
from dwellmoe.evaluation.report.comparison import comparisons
from dwellmoe.evaluation.report.locality_rows import locality_rows

SCHEMA_VERSION = 1
CONVENTION = {
    "teacher_forced": "prompt and reference answer in one causal pass: prompt tokens are prefill, answer "
    "tokens (end token included) decode; the same tokens for every variant: only the routers differ",
    "generated": "each variant's own greedy answer: the prompt is prefill, generated tokens are decode; "
    "repetition alone raises ECR, so repeated_4grams (share of 4-grams the answer had before) is beside it",
    "locality": "mean over pairs of consecutive tokens of one request and phase, and over layers; no padding",
    "access": dict(ACCESS),
    "start": "cold",
    "reset": "never",
    "order": "one request after the other through one cache; prefill layer-major, a prompt is one chunk",
    "rerouting": "a virtual cache: every expert is in memory, the routing strategy sees what a cache of the "
    "budget would hold; decode tokens counted, prompts hand over to the cache; requests in order through one "
    "cache (one a rank), each kind of text through its own; agreement: share of the router's own choice that "
    "ran; kl_next_token: KL in nats from the own choice's to the re-routed next-token distribution",
    "scope": "layer: capacity is slots a layer; global: slots for all layers together",
    "ci95": "percentile bootstrap over requests; of a cache over what each request met in the one "
    "cache that all went through (more than 1,024 requests in so many bundles)",
    "perplexity": "exp of the mean negative log-likelihood of reference answer tokens, end token included",
    "accuracy": "answer extracted from the generated text",
    "pass_at_1": "share of answers whose program, the task's tests at its end, runs through in a sandbox; "
    "one greedy answer a request",
    "choice_accuracy": "the reference has the highest mean log-likelihood a token of all allowed answers",
    "rouge": "F1 of generated against reference text",
    "miss_bytes_per_token": "bytes of experts fetched for a token of the phase, weights as loaded",
}


def build_report(
    settings: Mapping[str, Any],
    about: Mapping[str, Any],
    measured: Mapping[str, Measured],
    quality: Sequence[dict],
    rerouting: Sequence[dict] = (),
) -> dict:
    """The whole report; `about` is merged in as it is (model, data, device)."""
    resamples = settings["bootstrap_samples"]
    policies = settings["policies"]
    cache = [row for name, found in measured.items() for row in _cache(name, found, policies, resamples)]
    return {
        "schema_version": SCHEMA_VERSION,
        "command": "inference",
        "settings": dict(settings),
        "convention": CONVENTION,
        **about,
        "variants": list(measured),
        "locality": [row for name, found in measured.items() for row in _locality(name, found, resamples)],
        "cache": cache,
        "quality": list(quality),
        "rerouting": list(rerouting),
        "comparison": comparisons(measured, cache, resamples),
    }


def _locality(variant: str, measured: Measured, resamples: int) -> list[dict]:
    rows = []
    for text, recording in measured.recordings.items():
        found = locality_rows(variant, text, recording, resamples)
        if text == "generated":
            repeated = repeated_share([answer.token_ids for answer in measured.answers.values()])
            found = [row | {"repeated_4grams": repeated} for row in found]
        rows += found
    return rows


def _cache(variant: str, measured: Measured, policies: Sequence[str], resamples: int) -> list[dict]:
    return [
        row
        for text, recording in measured.recordings.items()
        for row in cache_rows(variant, text, recording.trace, policies, resamples)
    ]
