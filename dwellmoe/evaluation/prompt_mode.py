"""Answers a single prompt and reports what that took: seconds, cache hits, bytes.

Letters: K experts chosen, E routed experts a layer.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from rich.console import Console

from dwellmoe.cache import metrics
from dwellmoe.cache.budget import layer_slots
from dwellmoe.cache.replay.replay import replay
from dwellmoe.data.task import Task
from dwellmoe.evaluation.answers.choices import states_answers
from dwellmoe.evaluation.answers.judge import judge, program_of
from dwellmoe.evaluation.evaluated_model import EvaluatedModel
from dwellmoe.evaluation.generation import generate
from dwellmoe.evaluation.recording import has_pairs
from dwellmoe.evaluation.report.speed import measured_speed_row
from dwellmoe.evaluation.report.summary import four_digits, readable_bytes
from dwellmoe.evaluation.requests import Request
from dwellmoe.evaluation.sandbox.run import run_program
from dwellmoe.routing.simulated_cache import HITS, KEPT, MISSES, TOKENS


def answer_prompt(
    evaluated: EvaluatedModel,
    prompt: list[int],
    new_tokens: int,
    *,
    policies: Sequence[str],
    stop: Sequence[str] = (),
) -> dict[str, Any]:
    """The answer, its speed, its ECR, and for each policy the hits of a cold cache of 25 % of the experts.

    `hit_rate` and `miss_bytes_per_token` are of decoded tokens; no rows where fewer than two were decoded.
    """
    generated = generate(evaluated, [0], [prompt], new_tokens, stop=stop)
    answer = generated.answers[0]
    trace = generated.recording.trace
    slots = layer_slots(trace, "25%")
    long_enough = has_pairs(trace, "decode")
    return {
        "answer": answer.text,
        "prompt_tokens": len(prompt),
        "answer_tokens": len(answer.token_ids),
        "speed": measured_speed_row(evaluated.name, [generated.timing]).as_dict(),
        "ecr": metrics.ecr(trace, "decode").value if long_enough else None,
        "cache": [
            replay(trace, policy, slots, phase="decode").as_dict() for policy in policies if long_enough
        ],
    }


def rerouting_counts(evaluated: EvaluatedModel, strategy: str) -> dict[str, Any]:
    """What the cache by which the answer was routed counted in decode."""
    tally_LC = evaluated.rerouting.tallies[0]  # type: ignore[union-attr]
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
    """The verdict of the task's metric on an answer; None where the task has no right or wrong."""
    if task.metric == "pass_at_1":
        outcome = run_program(program_of(task, request.example, written), backends=tuple(backends))
        return f"{outcome.verdict.value} {outcome.reason}".strip()
    if task.metric == "accuracy" and states_answers(task, [request.example]):
        choices = tuple(request.example.fields.get("choices", ()))
        return judge(written, request.example.answer, task.form, choices).value
    return None


def print_answer(found: dict[str, Any], console: Console, undisclosed: bool = False) -> None:
    """Prints the answer and what it took, a few lines."""
    console.print("(not shown)" if undisclosed else found["answer"], markup=False, highlight=False)
    lines = (
        [f"the prompt lost its first {cut} tokens (--max_words_len)"]
        if (cut := found["cut_prompt_tokens"])
        else []
    )
    lines += [_speed(found), *map(_cache, found["cache"])]
    lines += [_rerouting(found["rerouting"])] if found.get("rerouting") else []
    lines += [f"ECR {found['ecr']:.4f}"] if found["ecr"] is not None else []
    lines += [f"verdict: {found['verdict']}"] if found.get("verdict") else []
    console.print("\n".join(lines), markup=False, highlight=False)


def _speed(found: dict[str, Any]) -> str:
    prefill, decode = (_rate(found["speed"][f"{phase}_tokens_per_second"]) for phase in ("prefill", "decode"))
    return (
        f"prefill {found['prompt_tokens']} tokens, {prefill}; "
        f"decode {found['answer_tokens']} tokens, {decode} (cold start)"
    )


def _rate(tokens_per_second: float | None) -> str:
    return "-" if tokens_per_second is None else f"{tokens_per_second:.1f} tokens/s"


def _cache(row: dict[str, Any]) -> str:
    return f"{row['policy']}, {row['capacity']} experts a layer, decode, cold: {_hits(row)}"


def _rerouting(row: dict[str, Any]) -> str:
    routed = f"routed by {row['strategy']}, {row['residency']} cache"
    return f"{routed}, {row['policy']}, {row['capacity']} experts a layer, after the prompt: {_hits(row)}"


def _hits(row: dict[str, Any]) -> str:
    missed = readable_bytes(row["miss_bytes_per_token"])
    return f"hit rate {four_digits(row['hit_rate'])}, {missed} missed a token"
