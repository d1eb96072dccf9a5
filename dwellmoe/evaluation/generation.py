"""Generates answers to a batch of prompts, with their routing recorded and their speed timed.

Letters: B rows, P prompt tokens of a row (padding included), T tokens so far (prompt included).
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList, StoppingCriteria

from dwellmoe.evaluation.evaluated_model import EvaluatedModel
from dwellmoe.evaluation.recording import Recording, recording_of
from dwellmoe.families.not_finite import refuse_nan
from dwellmoe.routing import RouterTap
from dwellmoe.routing.trace_recorder import TraceRecorder, generated_lengths

NGRAM = 4
NO_PENALTIES = {"repetition_penalty": 1.0, "no_repeat_ngram_size": 0, "min_new_tokens": 0}
"""Settings of `generate` that leave every logit as the model gives it."""
ALL_TOKENS = {
    "top_k": 0,
    "top_p": 1.0,
    "min_p": 0.0,
    "typical_p": 1.0,
    "epsilon_cutoff": 0.0,
    "eta_cutoff": 0.0,
}
"""Settings of `generate` with which a token may be drawn however unlikely it is."""
SPARE_TOKENS = 8
"""Decoded beside the tokens that a stop word can span, since a tokenizer may treat the first one apart."""


@dataclass(frozen=True)
class Answer:
    """What a model wrote in answer to one request."""

    request_id: int
    text: str
    token_ids: list[int]
    """Without the end token; a stop word is among them, but not in the text."""
    end_token_id: int | None = None
    """The end token that it wrote, if it wrote one."""

    @property
    def written_ids(self) -> list[int]:
        """All tokens, the end token included."""
        return self.token_ids + ([] if self.end_token_id is None else [self.end_token_id])


@dataclass(frozen=True)
class Timing:
    """Of one batch: the prompt tokens up to the first new one, and all tokens after that one."""

    prefill_tokens: int
    prefill_seconds: float
    decoded_tokens: int
    decode_seconds: float
    rows: int


class Generated(NamedTuple):
    """The answers to one batch, their routing, and how long they took."""

    answers: list[Answer]
    recording: Recording
    timing: Timing


def generate(
    evaluated: EvaluatedModel,
    request_ids: Sequence[int],
    prompts: Sequence[list[int]],
    max_new_tokens: int,
    stop: Sequence[str] = (),
    temperature: float = 0.0,
    streamer: Any = None,
    as_predicted: bool = False,
) -> Generated:
    """Answers a batch of prompts, greedily at temperature 0: prompt tokens are prefill, new ones decode.

    An answer ends before the first of the texts in `stop`. `streamer` receives each token of a single prompt.
    `as_predicted` leaves out what the model's generation settings would change of its distribution.
    """
    prompt_ids, mask = _left_padded(prompts, evaluated.pad_token_id)
    recorder = TraceRecorder(evaluated.moe_layers, gate_probs=True)
    stop_words = StopWords(evaluated.tokenizer, stop, prompt_ids.shape[1], len(prompts))
    clock = Clock()
    if evaluated.rerouting:
        evaluated.rerouting.describe(request_ids, mask.numpy(), torch.zeros_like(mask).numpy())
    with RouterTap(evaluated.model, evaluated.moe_layers, [recorder], evaluated.rerouting):
        sequences = run_model(
            evaluated,
            prompt_ids,
            mask,
            generation_config=_config(evaluated, max_new_tokens, temperature, as_predicted),
            stopping_criteria=[clock, stop_words] if stop else [clock],
            streamer=streamer,
        )
    lengths = generated_lengths(sequences, prompt_ids.shape[1], evaluated.end_token_ids)
    lengths = np.minimum(lengths, stop_words.lengths)
    timing = clock.timing(int(mask.sum()), lengths.tolist())
    recorder.add_generated(list(request_ids), mask, sequences, lengths)
    trace = recorder.trace(evaluated.name, "generated", evaluated.expert_bytes)
    new_ids = sequences[:, prompt_ids.shape[1] :].tolist()
    answers = [
        _answer(evaluated, request_id, ids[:length], stop)
        for request_id, ids, length in zip(request_ids, new_ids, lengths, strict=True)
    ]
    return Generated(answers, recording_of(trace), timing)


class StopWords(StoppingCriteria):
    """Ends each row with the token that completes a stop word, and keeps the position of that token."""

    def __init__(self, tokenizer: Any, words: Sequence[str], prompt_tokens: int, rows: int):
        self._tokenizer = tokenizer
        self._words = tuple(words)
        self._prompt_tokens = prompt_tokens
        self._window = max(map(len, self._words), default=0) + SPARE_TOKENS
        self.lengths = np.full(rows, np.iinfo(np.int64).max)
        """Generated tokens of a row up to its stop word [B]; huge for a row without one."""

    def __call__(self, input_ids: Tensor, scores: Tensor, **kwargs) -> Tensor:  # type: ignore[override]
        """bool [B]: the rows that have ended."""
        generated = input_ids.shape[1] - self._prompt_tokens
        tails = input_ids[:, -min(self._window, generated) :].tolist()
        for row, text in enumerate(self._tokenizer.batch_decode(tails)):
            if self.lengths[row] > generated and any(word in text for word in self._words):
                self.lengths[row] = generated
        return torch.from_numpy(self.lengths <= generated).to(input_ids.device)


def before_stop(text: str, words: Sequence[str]) -> str:
    """The text up to the first of the words."""
    return text[: min((i for word in words if (i := text.find(word)) >= 0), default=len(text))]


class Clock(StoppingCriteria):
    """Stops nothing: `generate` calls it after every token, and it notes the time."""

    def __init__(self):
        self._seconds = [time.perf_counter()]

    def __call__(self, input_ids: Tensor, scores: Tensor, **kwargs) -> Tensor:  # type: ignore[override]
        """bool [B]: False for every row."""
        if input_ids.device.type != "cpu":
            torch.accelerator.synchronize()
        self._seconds.append(time.perf_counter())
        return torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)

    def timing(self, prefill_tokens: int, lengths: Sequence[int]) -> Timing:
        """`prefill_tokens` of all rows without padding; `lengths`: tokens generated in each row."""
        start, first, *_ = [*self._seconds, self._seconds[-1]]
        return Timing(
            prefill_tokens=prefill_tokens,
            prefill_seconds=first - start,
            decoded_tokens=sum(lengths) - len(lengths),
            decode_seconds=self._seconds[-1] - first,
            rows=len(lengths),
        )


def repeated_ngrams(ids: Sequence[int], n: int = NGRAM) -> tuple[int, int]:
    """How many n-grams of a text's token ids occurred earlier in it, and how many there are."""
    grams = [tuple(ids[i : i + n]) for i in range(len(ids) - n + 1)]
    return len(grams) - len(set(grams)), len(grams)


def repeated_share(texts: Sequence[Sequence[int]], n: int = NGRAM) -> float:
    """Share of n-grams of token ids that occurred earlier in the same text; 0 if no text is long enough."""
    counts = [repeated_ngrams(ids, n) for ids in texts]
    repeated, total = (sum(column) for column in zip(*counts, strict=True)) if counts else (0, 0)
    return 1 - (total - repeated) / total if total else 0.0


def _config(
    evaluated: EvaluatedModel, max_new_tokens: int, temperature: float, as_predicted: bool
) -> GenerationConfig:
    sampling: dict[str, Any] = {"do_sample": False}
    if temperature:
        sampling = {"do_sample": True, "temperature": temperature} | (ALL_TOKENS if as_predicted else {})
    if as_predicted:
        sampling |= NO_PENALTIES
    return GenerationConfig(
        max_new_tokens=max_new_tokens,
        use_cache=True,
        pad_token_id=evaluated.pad_token_id,
        eos_token_id=evaluated.end_token_ids or None,
        **sampling,
    )


def run_model(evaluated: EvaluatedModel, prompt_ids: Tensor, mask: Tensor, **options: Any) -> Tensor:
    """The prompts with what the model's `generate`, which gets the options, writes after them [B, T].

    Raises UserError for a model whose first logits are NaN.
    """
    device = evaluated.model.device
    inputs = {"input_ids": prompt_ids.to(device), "attention_mask": mask.to(device)}
    checks = LogitsProcessorList([_RefuseNan(evaluated.model, inputs)])
    with torch.inference_mode():
        return evaluated.model.generate(**inputs, logits_processor=checks, **options).cpu()


class _RefuseNan(LogitsProcessor):
    """Refuses logits of the first token that are NaN, of which sampling would make some text."""

    def __init__(self, model: nn.Module, inputs: dict[str, Tensor]) -> None:
        self._model = model
        self._inputs = inputs
        self._first = True

    def __call__(self, input_ids: Any, scores: Any) -> Any:
        if self._first:
            refuse_nan(self._model, scores, self._inputs)
        self._first = False
        return scores


def _answer(evaluated: EvaluatedModel, request_id: int, ids: list[int], stop: Sequence[str]) -> Answer:
    ended = bool(ids) and ids[-1] in evaluated.end_token_ids
    kept = ids[:-1] if ended else ids
    text = evaluated.tokenizer.decode(kept, skip_special_tokens=True)
    return Answer(request_id, before_stop(text, stop), kept, ids[-1] if ended else None)


def _left_padded(prompts: Sequence[list[int]], pad_token_id: int) -> tuple[Tensor, Tensor]:
    """`(ids, mask)` [B, P] with the padding on the left, where generation needs it."""
    longest = max(map(len, prompts))
    ids = [[pad_token_id] * (longest - len(prompt)) + prompt for prompt in prompts]
    mask = [[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts]
    return torch.tensor(ids), torch.tensor(mask)
