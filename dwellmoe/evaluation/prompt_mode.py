"""Knows how one prompt is answered and what that took: seconds, cache hits, bytes; writes no report.

Letters: K experts chosen, E routed experts a layer.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from rich.console import Console

from dwellmoe.cache import metrics
from dwellmoe.cache.replay.replay import replay
from dwellmoe.data.task import Task
from dwellmoe.data.tokenised import token_ids
from dwellmoe.errors import UserError
from dwellmoe.evaluation.answers.judge import judge
from dwellmoe.evaluation.answers.programs import program_of
from dwellmoe.evaluation.chat_template import as_message
from dwellmoe.evaluation.evaluated_model import EvaluatedModel
from dwellmoe.evaluation.generation import generate
from dwellmoe.evaluation.recording import has_pairs
from dwellmoe.evaluation.report.summary import readable_bytes
from dwellmoe.evaluation.requests import Request, prompt_ids
from dwellmoe.evaluation.sandbox.run import run_program
from dwellmoe.evaluation.timing import Timing, speed_row
from dwellmoe.routing.simulated_cache import HITS, KEPT, MISSES, TOKENS


def own_prompt(text: str, evaluated: EvaluatedModel, use_chat_template: str, row_tokens: int) -> list[int]:
    """Tokens of a user's own prompt; through the chat template unless that is `off` or there is none.

    Raises UserError for an empty prompt, or for `on` without a template.
    """
    if not text.strip():
        raise UserError("--input: the prompt is empty")
    template = evaluated.tokenizer.chat_template
    if use_chat_template == "on" and not template:
        raise UserError("--use_chat_template on: the tokenizer has no chat template; choose from auto, off")
    worded = as_message(text, evaluated.tokenizer) if template and use_chat_template != "off" else text
    return prompt_ids(evaluated.tokenizer, token_ids(evaluated.tokenizer, [worded])[0], row_tokens)


def answer_alone(
    evaluated: EvaluatedModel,
    prompt: list[int],
    new_tokens: int,
    stop: Sequence[str],
    policies: Sequence[str],
) -> dict[str, Any]:
    """The answer, its speed, its ECR, and for each policy what a cold cache of 25 % of the experts did.

    `hit_rate` and `miss_bytes_per_token` are of decoded tokens; None where fewer than two were decoded.
    """
    timings: list[Timing] = []
    answers, recording = generate(evaluated, [0], [prompt], new_tokens, stop, timings)
    trace, slots = recording.trace, max(recording.trace.top_k, recording.trace.num_experts // 4)
    long_enough = has_pairs(trace, "decode")
    rows = [replay(trace, policy, slots, phase="decode").as_dict() for policy in policies if long_enough]
    return {
        "answer": answers[0].text,
        "prompt_tokens": len(prompt),
        "answer_tokens": len(answers[0].token_ids),
        "speed": speed_row(evaluated.name, timings),
        "ecr": metrics.ecr(trace, "decode").value if long_enough else None,
        "cache": rows,
    }


def rerouting_counts(evaluated: EvaluatedModel, strategy: str) -> dict[str, Any]:
    """What the cache by which the answer was routed counted in decode."""
    tally_LC = evaluated.virtual.tallies[0]  # type: ignore[union-attr]
    hits, misses, kept = (int(tally_LC[:, kind].sum()) for kind in (HITS, MISSES, KEPT))
    tokens = tally_LC[:, TOKENS].sum() / len(tally_LC)
    missed_bytes = int(tally_LC[:, MISSES] @ np.asarray(evaluated.expert_bytes))
    return {
        "strategy": strategy,
        "hits": hits,
        "misses": misses,
        "hit_rate": hits / kept if kept else None,
        "miss_bytes_per_token": missed_bytes / tokens if tokens else None,
    }


def verdict_on(request: Request, task: Task, written: str, backends: Sequence[str]) -> str | None:
    """What the task's rule says of an answer, in a word; None where it has no such rule."""
    if task.metric == "pass_at_1":
        outcome = run_program(program_of(task, request.example, written), backends=tuple(backends))
        return f"{outcome.verdict.value} {outcome.reason}".strip()
    if task.metric == "accuracy":
        choices = tuple(request.example.fields.get("choices", ()))
        return judge(written, request.example.answer, task.form, choices).value
    return None


def print_alone(found: dict[str, Any], console: Console, undisclosed: bool = False) -> None:
    """The answer and what it took, a few lines."""
    speed = found["speed"]
    console.print("(not shown)" if undisclosed else found["answer"], markup=False, highlight=False)
    lines = [
        f"prefill {found['prompt_tokens']} tokens, {_rate(speed['prefill_tokens_per_second'])}; decode "
        f"{found['answer_tokens']} tokens, {_rate(speed['decode_tokens_per_second'])} (cold start)"
    ]
    for row in found["cache"]:
        told = f"hit rate {row['hit_rate']:.4f}, {readable_bytes(row['miss_bytes_per_token'])} missed a token"
        lines.append(f"{row['policy']}, {row['capacity']} experts a layer, decode, cold: {told}")
    if rerouted := found.get("rerouting"):
        told = f"hit rate {_number(rerouted['hit_rate'])}, {readable_bytes(rerouted['miss_bytes_per_token'])}"
        cache = f"{rerouted['policy']}, {rerouted['capacity']} experts a layer, after the prompt"
        routed = f"routed by {rerouted['strategy']}, {rerouted['residency']} cache"
        lines.append(f"{routed}, {cache}: {told} missed a token")
    lines += [f"ECR {found['ecr']:.4f}"] if found["ecr"] is not None else []
    lines += [f"verdict: {found['verdict']}"] if found.get("verdict") else []
    console.print("\n".join(lines), markup=False, highlight=False)


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


def _rate(tokens_per_second: float | None) -> str:
    return "-" if tokens_per_second is None else f"{tokens_per_second:.1f} tokens/s"
