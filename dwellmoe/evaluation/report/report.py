"""Builds the whole report of an evaluation, with the conventions by which its numbers were counted.

Its tables hold plain numbers, and None where there is no number.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from dwellmoe.cache.access import PHASES
from dwellmoe.cache.device import DeviceProfile
from dwellmoe.cache.replay.prompt_pool import prompt_pool_rows
from dwellmoe.cache.replay.report_block import report_block
from dwellmoe.data.task import Task
from dwellmoe.evaluation.evaluated_model import EvaluatedModel, rerouting_fields
from dwellmoe.evaluation.generation import repeated_share
from dwellmoe.evaluation.measure import Measured
from dwellmoe.evaluation.options import REROUTED, Options
from dwellmoe.evaluation.report.cache_rows import ACCESS, hit_rate_rows, rerouting_rows
from dwellmoe.evaluation.report.comparison import comparisons
from dwellmoe.evaluation.report.free_running import DEFINITION as FREE_DEFINITION
from dwellmoe.evaluation.report.free_running import FREE_RUNNING, free_running_fields
from dwellmoe.evaluation.report.locality_rows import locality_rows
from dwellmoe.evaluation.report.quality import quality_of_answers, quality_row
from dwellmoe.evaluation.report.speed import device_note, measured_speed_row, speed_rows
from dwellmoe.evaluation.requests import Request
from dwellmoe.evaluation.rerouting import NO_REROUTING
from dwellmoe.evaluation.text_lengths import TextLengths
from dwellmoe.loading import BASE

SCHEMA_VERSION = 1
CONVENTION = {
    "teacher_forced": "prompt and reference answer in one causal pass: prompt tokens are prefill, answer "
    "tokens (end token included) decode; the same tokens for every variant: only the routers differ",
    "generated": "each variant's own greedy answer: the prompt is prefill, generated tokens are decode; "
    "repetition alone raises ECR, so repeated_4grams (share of 4-grams that occurred earlier in the answer) "
    "is reported beside it",
    "locality": "mean over pairs of consecutive tokens of one request and phase, and over layers; no padding",
    "prompt_pool": "share of decode accesses outside the pool: in each layer the experts that the request's "
    "prompt used most (in a conversation the last turn's), of equal ones those used later; what is left to "
    "fetch if only the pool stays in memory",
    "access": dict(ACCESS),
    "start": "cold",
    "reset": "never",
    "order": "one request after the other through one cache; prefill layer-major, a prompt is one chunk",
    "rerouting": "a simulated cache: every expert is in memory, and the routing strategy is given what a "
    "cache of the budget would hold; decode tokens counted, prompts hand over to the cache; requests in "
    "order through one cache (one a rank), each kind of text through its own; agreement: share of the "
    "router's own choice that ran; kl_next_token: KL in nats from the own choice's to the re-routed "
    "next-token distribution",
    FREE_RUNNING: FREE_DEFINITION,
    "scope": "layer: capacity is slots a layer; global: slots for all layers together",
    "ci95": "percentile bootstrap over requests; for a cache over the hits and misses of each request in the "
    "one cache that serves all of them (more than 1,024 requests in so many bundles)",
    "perplexity": "exp of the mean negative log-likelihood of reference answer tokens, end token included",
    "accuracy": "answer extracted from the generated text; only where the prompts state the choices, or the "
    "form of an answer is fixed",
    "exact_match": "in place of accuracy for free text: the generated text is the reference, but for case, "
    "blanks and punctuation at its ends",
    "pass_at_1": "share of answers whose program, with the task's tests at its end, runs to its end in a "
    "sandbox; one greedy answer a request",
    "choice_accuracy": "the reference has the highest mean log-likelihood a token of all allowed answers",
    "rouge": "F1 of generated against reference text",
    "memory_equivalent_25": "x_vs_y: the LRU cache with which y misses as seldom as x does with 25 % of the "
    "experts, over that size; exact at whole capacities, straight lines between; at least or at most: y's "
    "misses are never as few or as many",
    "reporting": "decode, a cache a layer, atomic, cold, never emptied; what was not recorded is null",
    "miss_bytes_per_token": "bytes of experts fetched for a token of the phase, weights as loaded",
}


def build_report(
    *,
    options: Options,
    task: Task,
    evaluated: EvaluatedModel,
    device: DeviceProfile,
    requests: Sequence[Request],
    new_tokens: int,
    lengths: TextLengths,
    measured: Mapping[str, Measured],
    engine_rows: Sequence[dict],
) -> dict[str, Any]:
    """The whole report as one JSON object; `engine_rows`: what the offloading engine did, if there is one."""
    resamples = options.evaluation.bootstrap_samples
    cache = [
        row for name, found in measured.items() for row in _cache(name, found, options.policies, resamples)
    ]
    quality = [
        quality_row(name, task, requests, found, resamples=resamples, backends=options.backends)
        for name, found in measured.items()
    ]
    compared = comparisons(measured, cache, resamples)
    report = {
        "schema_version": SCHEMA_VERSION,
        "command": "inference",
        "settings": options.fields(),
        "convention": CONVENTION,
        "model": evaluated.fields(),
        "data": _data(options, task, requests, measured)
        | asdict(lengths)
        | {
            "chat_template": task.chat,
            "row_tokens": options.row_tokens(task, evaluated.model),
            "new_tokens": new_tokens,
        },
        "device": asdict(device) | {"about": device_note(device)},
        "variants": list(measured),
        "locality": [row for name, found in measured.items() for row in _locality(name, found, resamples)],
        "prompt_pool": [
            row for name, found in measured.items() for row in _prompt_pool(name, found, resamples)
        ],
        "cache": cache,
        "quality": [row.as_dict() for row in quality],
        "rerouting": _rerouting(options, evaluated, task, requests, measured),
        "reporting": [
            row
            for name, found in measured.items()
            for row in _reporting(name, found, options.policies, resamples)
        ],
        "comparison": {name: comparison.as_dict() for name, comparison in compared.items()},
        "measured_speed": [
            measured_speed_row(
                name, found.timings, adapter=_adapter(name, options), merged=found.merged_timings
            ).as_dict()
            for name, found in measured.items()
        ],
        "speed": [row.as_dict() for row in speed_rows(device, measured, cache, evaluated.resident_bytes)],
    }
    return finite(report | ({"engine": list(engine_rows)} if engine_rows else {}))


def finite(value: Any) -> Any:
    """The value with None in place of each number, or pair of numbers, that is not finite: JSON has none."""
    if isinstance(value, dict):
        return {name: finite(each) for name, each in value.items()}
    if isinstance(value, list):
        return None if any(map(_is_infinite, value)) else [finite(each) for each in value]
    return None if _is_infinite(value) else value


def _is_infinite(value: Any) -> bool:
    return isinstance(value, float) and not math.isfinite(value)


def _adapter(variant: str, options: Options) -> str:
    if variant.removesuffix(REROUTED) == BASE:
        return "none"
    return "unmerged, its experts' part merged when read" if options.engine else "unmerged"


def _data(
    options: Options, task: Task, requests: Sequence[Request], measured: Mapping[str, Measured]
) -> dict[str, Any]:
    return {
        "dataset": task.name,
        "split": options.evaluation.split,
        "requests": len(requests),
        "tokens": sum(len(request.row["input_ids"]) for request in requests),
        "generated_requests": len(measured[BASE].answers),
    }


def _locality(variant: str, measured: Measured, resamples: int) -> list[dict]:
    rows = []
    own_texts = {"generated": measured.answers, FREE_RUNNING: measured.free_answers}
    for text, recording in measured.recordings.items():
        found = [{"variant": variant, "text": text} | row for row in locality_rows(recording, resamples)]
        if text in own_texts:
            repeated = repeated_share([answer.token_ids for answer in own_texts[text].values()])
            found = [row | {"repeated_4grams": repeated} for row in found]
        rows += found
    return rows


def _prompt_pool(variant: str, measured: Measured, resamples: int) -> list[dict]:
    return [
        {"variant": variant, "text": text} | row.as_dict()
        for text, recording in measured.recordings.items()
        for row in prompt_pool_rows(recording.trace, resamples=resamples)
    ]


def _cache(variant: str, measured: Measured, policies: Sequence[str], resamples: int) -> list[dict]:
    return [
        {"variant": variant, "text": text} | row.as_dict()
        for text, recording in measured.recordings.items()
        for row in hit_rate_rows(recording.trace, policies, resamples)
    ]


def _reporting(
    variant: str, measured: Measured, policies: Sequence[str], resamples: int
) -> list[dict[str, Any]]:
    return [
        {"variant": variant, "text": text} | report_block(recording.trace, policies, resamples=resamples)
        for text, recording in measured.recordings.items()
        if np.isin(recording.trace.phase, PHASES["decode"]).any()
    ]


def _rerouting(
    options: Options,
    evaluated: EvaluatedModel,
    task: Task,
    requests: Sequence[Request],
    measured: Mapping[str, Measured],
) -> list[dict]:
    if options.rerouting is None:
        return []
    strategies = {
        name: rerouting.strategy if rerouting else NO_REROUTING
        for name, rerouting in options.variants.items()
    }
    rows = rerouting_rows(measured, strategies, evaluated.expert_bytes, options.evaluation.bootstrap_samples)
    written = {
        name: _written(options, task, requests, found, measured[BASE]) for name, found in measured.items()
    }
    return [
        row
        | rerouting_fields(options.rerouting, evaluated)
        | (written[row["variant"]] if row["text"] == FREE_RUNNING else {})
        for row in rows
    ]


def _written(
    options: Options, task: Task, requests: Sequence[Request], measured: Measured, base: Measured
) -> dict[str, Any]:
    """What a variant's free text cost, and how it does as an answer to the task."""
    if options.free_running is None:
        return {}
    resamples = options.evaluation.bootstrap_samples
    return free_running_fields(measured, base, options.free_running, resamples) | quality_of_answers(
        task, requests, measured.free_answers, resamples, options.backends
    )
