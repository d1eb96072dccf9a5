"""The harness's own model class over a loaded model, with the routing of the tokens that each task runs.

Letters: B rows, T tokens of a row (padding included), P prompt tokens of a row.
"""

from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from lm_eval.models.huggingface import HFLM
from torch import Tensor

from dwellmoe.cache.trace import RoutingTrace
from dwellmoe.evaluation.evaluated_model import EvaluatedModel
from dwellmoe.evaluation.recording import Recording, join
from dwellmoe.families.not_finite import refuse_nan
from dwellmoe.routing import RouterTap
from dwellmoe.routing.trace_recorder import TraceRecorder, generated_lengths

Harness: Any = HFLM
"""Its decorator hides its type."""
PADDING = 0
"""The token with which the harness fills rows that it scores, on the right."""


class RecordingModel(Harness):
    """Scores and generates as `HFLM` does; a tap on the routers sees every pass.

    A row that the harness runs is a request: of a row that is scored the context is prefill and the
    continuation decode, of a generated one the prompt and what is generated. Padding, and what runs after a
    row has ended, is not recorded. `recorded` gives the requests of each task in the order in which they ran.
    """

    def __init__(self, evaluated: EvaluatedModel, batch_size: int, max_length: int | None = None) -> None:
        super().__init__(
            pretrained=evaluated.model,
            tokenizer=evaluated.tokenizer,
            backend="causal",
            batch_size=batch_size,
            max_length=max_length,
        )
        self.evaluated = evaluated
        self._parts: dict[str, list[RoutingTrace]] = defaultdict(list)
        self._context_tokens: dict[tuple[int, ...], int] = {}
        self._task = ""
        self._requests = 0
        self.requests_of: dict[str, list[int]] = defaultdict(list)
        """Task -> the numbers of its requests."""

    def recorded(self) -> dict[str, RoutingTrace]:
        """Task -> its routing so far."""
        return {
            task: join([Recording(part, {}) for part in parts]).trace for task, parts in self._parts.items()
        }

    def loglikelihood(self, requests: Sequence[Any], *args: Any, **options: Any) -> list:
        return self._by_task(super().loglikelihood, requests, *args, **options)

    def loglikelihood_rolling(self, requests: Sequence[Any], *args: Any, **options: Any) -> list:
        return self._by_task(super().loglikelihood_rolling, requests, *args, **options)

    def generate_until(self, requests: Sequence[Any], *args: Any, **options: Any) -> list:
        return self._by_task(super().generate_until, requests, *args, **options)

    def _by_task(self, run: Callable[..., list], requests: Sequence[Any], *args: Any, **options: Any) -> list:
        """Runs the requests of one task after those of another; the results in the order of the requests."""
        results: list[Any] = [None] * len(requests)
        for task in dict.fromkeys(request.task_name for request in requests):
            self._task = str(task)
            mine = [index for index, request in enumerate(requests) if request.task_name == task]
            found = run([requests[index] for index in mine], *args, **options)
            for index, result in zip(mine, found, strict=True):
                results[index] = result
        return results

    def _loglikelihood_tokens(self, requests: Sequence[Any], *args: Any, **options: Any) -> list:
        self._context_tokens = {}
        for _, context, continuation in requests:
            row = tuple([*context, *continuation][-(self.max_length + 1) :][:-1])
            context_tokens = len(row) - (len(continuation) - 1)
            self._context_tokens[row] = min(context_tokens, self._context_tokens.get(row, len(row)))
        return super()._loglikelihood_tokens(requests, *args, **options)

    def _model_call(self, inps: Tensor, *args: Any, **options: Any) -> Tensor:
        rows = [self._without_padding(row) for row in inps.tolist()]
        lengths_B1 = torch.tensor([len(row) for row in rows])[:, None]
        context_B1 = torch.tensor([self._context_tokens[row] for row in rows])[:, None]
        positions_T = torch.arange(inps.shape[1])
        valid_BT, decode_BT = positions_T < lengths_B1, positions_T >= context_B1
        requests = self._new_requests(len(rows))
        recorder = TraceRecorder(self.evaluated.moe_layers)
        with self._tap(recorder, requests, valid_BT.numpy(), decode_BT.numpy()):
            logits_BTV = super()._model_call(inps, *args, **options)
        refuse_nan(
            self.evaluated.model, logits_BTV.amax(-1)[valid_BT.to(logits_BTV.device)], {"input_ids": inps}
        )
        recorder.add(requests, valid_BT, decode_BT, inps)
        self._keep(recorder, "teacher_forced")
        return logits_BTV

    def _model_generate(self, context: Tensor, max_length: int, stop: list[str], **options: Any) -> Tensor:
        mask_BP = options["attention_mask"]
        requests = self._new_requests(len(context))
        recorder = TraceRecorder(self.evaluated.moe_layers)
        with self._tap(recorder, requests, mask_BP.cpu().numpy(), np.zeros(mask_BP.shape, np.bool_)):
            sequences = super()._model_generate(context=context, max_length=max_length, stop=stop, **options)
        lengths = self._lengths(sequences.cpu(), context.shape[1], stop)
        recorder.add_generated(requests, mask_BP, sequences, lengths)
        self._keep(recorder, "generated")
        return sequences

    def _without_padding(self, ids: list[int]) -> tuple[int, ...]:
        """The row of the request that the harness padded to these tokens."""
        row = tuple(ids)
        while row not in self._context_tokens:
            assert row and row[-1] == PADDING, "a row that was not asked for"
            row = row[:-1]
        return row

    def _new_requests(self, count: int) -> list[int]:
        numbers = list(range(self._requests, self._requests + count))
        self._requests += count
        self.requests_of[self._task] += numbers
        return numbers

    def _tap(
        self, recorder: TraceRecorder, requests: list[int], valid_BT: np.ndarray, decode_BT: np.ndarray
    ) -> RouterTap:
        """Records the next pass, and re-routes it if the model is re-routed."""
        evaluated = self.evaluated
        if evaluated.rerouting:
            evaluated.rerouting.describe(requests, valid_BT, decode_BT)
        return RouterTap(evaluated.model, evaluated.moe_layers, [recorder], evaluated.rerouting)

    def _keep(self, recorder: TraceRecorder, source: str) -> None:
        self._parts[self._task].append(
            recorder.trace(self.evaluated.name, source, self.evaluated.expert_bytes)
        )

    def _lengths(self, sequences: Tensor, prompt_tokens: int, stop: Sequence[str]) -> np.ndarray:
        """Tokens that each row generated until its end token, or until a stop text was complete: [B]."""
        lengths = generated_lengths(sequences, prompt_tokens, self.evaluated.end_token_ids)
        new_ids = sequences[:, prompt_tokens:].tolist()
        return np.array(
            [self._until_stop(ids[:length], stop) for ids, length in zip(new_ids, lengths, strict=True)]
        )

    def _until_stop(self, ids: list[int], stop: Sequence[str]) -> int:
        """The fewest tokens whose text holds one of the texts; all where none does."""
        fewest, enough = 0, len(ids)
        while fewest < enough:
            middle = (fewest + enough) // 2
            text = self.tokenizer.decode(ids[:middle])
            if any(word in text for word in stop if word):
                enough = middle
            else:
                fewest = middle + 1
        return enough
