"""The speed of a variant with its adapter merged into the weights, as a merged model runs.

An adapter beside the weights computes its part of every weight anew in every step: that is how all variants
can be measured out of one loaded model, but it says nothing of the speed of the tuned model.
"""

from collections.abc import Iterator
from contextlib import contextmanager

from peft import PeftModel

from dwellmoe.errors import first_line
from dwellmoe.evaluation.evaluated_model import EvaluatedModel
from dwellmoe.evaluation.generation import Timing, generate
from dwellmoe.evaluation.measure import Workload
from dwellmoe.evaluation.ranks import Ranks
from dwellmoe.log import warn_once

BATCHES = 3
"""Batches of answers of each rank that are timed; the first warms up."""


def merged_timings(evaluated: EvaluatedModel, work: Workload, ranks: Ranks, variant: str) -> list[Timing]:
    """Timings of the first batches of answers with the active adapter merged, on the first rank; none, which
    is said, for an adapter that cannot be merged.

    The weights come out of it rounded a little differently: to be called when all else is measured.
    """
    if not work.generated:
        return []
    try:
        return ranks.gather(_timed(evaluated, work, ranks, variant))
    except (ValueError, NotImplementedError) as error:
        warn_once(f"the speed of '{variant}' with its adapter merged is not measured: {first_line(error)}")
        return []


def _timed(evaluated: EvaluatedModel, work: Workload, ranks: Ranks, variant: str) -> list[tuple[int, Timing]]:
    with _merged(evaluated.model, variant):
        return [
            (
                index,
                generate(
                    evaluated,
                    [request.request_id for request in batch],
                    [request.prompt_ids for request in batch],
                    work.max_new_tokens,
                    stop=work.stop,
                ).timing,
            )
            for index, batch in ranks.share(work.generated)[:BATCHES]
        ]


@contextmanager
def _merged(model: PeftModel, adapter: str) -> Iterator[None]:
    """In place, a layer at a time: no second copy of the weights is made."""
    model.base_model.merge_adapter([adapter])  # type: ignore[operator]
    try:
        yield
    finally:
        model.base_model.unmerge_adapter()  # type: ignore[operator]
