"""Knows how answers are generated and their routing recorded; does not judge them.

Letters: B rows, P prompt tokens of a row (padding included).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import GenerationConfig

from dwellmoe.evaluation.evaluated_model import EvaluatedModel
from dwellmoe.evaluation.recording import Recording, recording_of
from dwellmoe.evaluation.stopping import StopWords, before_stop
from dwellmoe.evaluation.timing import Clock, Timing
from dwellmoe.routing import RouterTap
from dwellmoe.routing.trace_recorder import TraceRecorder, generated_lengths

NGRAM = 4


@dataclass(frozen=True)
class Answer:
    """What a model said to one request."""

    number: int
    text: str
    token_ids: list[int]
    """Without the end token; a stop word is among them, but not in the text."""


def generate(
    evaluated: EvaluatedModel,
    numbers: Sequence[int],
    prompts: Sequence[list[int]],
    max_new_tokens: int,
    stop: Sequence[str] = (),
    timings: list[Timing] | None = None,
    temperature: float = 0.0,
    streamer: Any = None,
) -> tuple[list[Answer], Recording]:
    """Answers to a batch of prompts, greedy at temperature 0; prompt tokens are prefill, generated tokens
    decode.

    An answer ends before the first of the texts in `stop`. What it took is added to `timings`. `streamer`
    hears of each token of a single prompt as it comes.
    """
    prompt_ids, mask = _left_padded(prompts, evaluated.pad_token_id)
    recorder = TraceRecorder(evaluated.moe_layers, gate_probs=True)
    if evaluated.virtual:
        evaluated.virtual.describe(numbers, mask.numpy(), torch.zeros_like(mask).numpy())
    with RouterTap(evaluated.model, evaluated.moe_layers, [recorder], evaluated.virtual):
        words = StopWords(evaluated.tokenizer, stop, prompt_ids.shape[1], len(prompts))
        clock = Clock()
        config = _config(evaluated, max_new_tokens, temperature)
        more = {"stopping_criteria": [clock, *([words] if stop else [])], "streamer": streamer}
        sequences = _run(evaluated, prompt_ids, mask, config, more)
    lengths = generated_lengths(sequences, prompt_ids.shape[1], evaluated.end_token_ids)
    lengths = np.minimum(lengths, words.lengths)
    if timings is not None:
        timings.append(clock.timing(int(mask.sum()), lengths.tolist()))
    recorder.add_generated(list(numbers), mask, sequences, lengths)
    new = sequences[:, prompt_ids.shape[1] :].tolist()
    said = [ids[:length] for ids, length in zip(new, lengths, strict=True)]
    answers = [_answer(evaluated, number, ids, stop) for number, ids in zip(numbers, said, strict=True)]
    return answers, recording_of(recorder.trace(evaluated.name, "generated", evaluated.expert_bytes))


def repeated_share(texts: Sequence[Sequence[int]], n: int = NGRAM) -> float:
    """Share of the n-grams of token ids that their own text has had before; 0 where none is long enough."""
    grams = [[tuple(ids[at : at + n]) for at in range(len(ids) - n + 1)] for ids in texts]
    total = sum(map(len, grams))
    return 1 - sum(len(set(text)) for text in grams) / total if total else 0.0


def _config(evaluated: EvaluatedModel, max_new_tokens: int, temperature: float) -> GenerationConfig:
    sampling = {"do_sample": True, "temperature": temperature} if temperature else {"do_sample": False}
    return GenerationConfig(
        max_new_tokens=max_new_tokens,
        use_cache=True,
        pad_token_id=evaluated.pad_token_id,
        eos_token_id=evaluated.end_token_ids or None,
        **sampling,
    )


def _run(
    evaluated: EvaluatedModel,
    prompt_ids: Tensor,
    mask: Tensor,
    config: GenerationConfig,
    more: dict[str, Any],
) -> Tensor:
    device = evaluated.model.device
    inputs = {"input_ids": prompt_ids.to(device), "attention_mask": mask.to(device)}
    with torch.inference_mode():
        return evaluated.model.generate(**inputs, generation_config=config, **more).cpu()


def _answer(evaluated: EvaluatedModel, number: int, ids: list[int], stop: Sequence[str]) -> Answer:
    kept = ids[:-1] if ids and ids[-1] in evaluated.end_token_ids else ids
    text = evaluated.tokenizer.decode(kept, skip_special_tokens=True)
    return Answer(number, before_stop(text, stop), kept)


def _left_padded(prompts: Sequence[list[int]], pad_token_id: int) -> tuple[Tensor, Tensor]:
    """`(ids, mask)` [B, P] with the padding on the left, where generation wants it."""
    longest = max(map(len, prompts))
    ids = [[pad_token_id] * (longest - len(prompt)) + prompt for prompt in prompts]
    mask = [[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts]
    return torch.tensor(ids), torch.tensor(mask)
