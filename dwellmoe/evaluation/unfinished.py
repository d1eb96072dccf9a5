"""An evaluation that can be stopped: what it has measured belongs to its model, requests and settings."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path

from rich.console import Console

from dwellmoe.data.download import file_sha256
from dwellmoe.data.download_cache import digest
from dwellmoe.evaluation.evaluated_model import EvaluatedModel
from dwellmoe.evaluation.kept_batches import PREFIX, KeptBatches
from dwellmoe.evaluation.measure import Workload
from dwellmoe.evaluation.options import Options
from dwellmoe.evaluation.ranks import Ranks
from dwellmoe.evaluation.requests import Request
from dwellmoe.loading import ADAPTER_WEIGHTS
from dwellmoe.offload.io.fingerprint import checkpoint_fingerprint

STEP_BYTES = 9
"""Of a token in a trace, beside its experts: phase, request, token id."""
EXPERT_BYTES = 4
"""Of a chosen expert of a token in a trace: its number and its weight."""


def kept_batches(
    folder: Path, options: Options, requests: Sequence[Request], work: Workload, ranks: Ranks
) -> KeptBatches:
    """Where the batches of this evaluation are kept, in the folder of its results. Raises UserError."""
    in_one_go = options.rerouting or options.engine
    identity = digest(
        [
            options.fields(),
            checkpoint_fingerprint(options.model.model_name),
            {name: file_sha256(Path(path) / ADAPTER_WEIGHTS) for name, path in options.adapters.items()},
            [[request.row["input_ids"], request.prompt_ids] for request in requests],
            [[choice.row["input_ids"] for choice in batch] for batch in work.choices],
            [work.max_new_tokens, work.stop, ranks.world_size if in_one_go else None],
            [version(package) for package in ("torch", "transformers", "peft")],
        ]
    )
    kept = KeptBatches(folder / f"{PREFIX}{identity}", options.evaluation.resume)
    kept.make_folder()
    return kept


@contextmanager
def stoppable(kept: KeptBatches, console: Console) -> Iterator[None]:
    """A block that measures. What was kept before, and what a stopped block has kept, is said."""
    before = kept.count()
    if kept.resume:
        console.print(f"going on with {before} batches that were measured before, in {kept.folder}")
    elif before:
        console.print(
            f"{before} batches of a stopped evaluation are in {kept.folder}: they are measured anew; "
            "--resume True goes on with them"
        )
    try:
        yield
    except BaseException:
        console.print(f"stopped: {kept.count()} batches are kept in {kept.folder}; --resume True goes on")
        raise


def results_bytes(
    evaluated: EvaluatedModel, requests: Sequence[Request], work: Workload, variants: int
) -> int:
    """About the bytes of an evaluation's traces, which are kept batch by batch and then written whole."""
    scored = sum(len(request.row["input_ids"]) for request in requests)
    answered = [len(request.prompt_ids) for batch in work.generated for request in batch]
    tokens = scored + sum(answered) + len(answered) * work.max_new_tokens
    chosen = sum(layer.top_k for layer in evaluated.moe_layers)
    return 2 * variants * tokens * (STEP_BYTES + EXPERT_BYTES * chosen)
