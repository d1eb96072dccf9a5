"""An evaluation that can be stopped: what it has measured belongs to its model, requests and settings."""

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

from rich.console import Console

from dwellmoe.data.download import file_sha256
from dwellmoe.data.download_cache import digest
from dwellmoe.errors import UserError
from dwellmoe.evaluation.evaluated_model import EvaluatedModel
from dwellmoe.evaluation.kept_batches import PREFIX, KeptBatches
from dwellmoe.evaluation.measure import Workload
from dwellmoe.evaluation.options import Options
from dwellmoe.evaluation.ranks import Ranks
from dwellmoe.evaluation.requests import Request
from dwellmoe.files import replacing
from dwellmoe.loading import ADAPTER_WEIGHTS
from dwellmoe.offload.io.fingerprint import checkpoint_fingerprint
from dwellmoe.run_identity import listed

IDENTITY = "identity.json"
"""File beside the kept batches that says of which evaluation they are."""
STEP_BYTES = 9
"""Of a token in a trace, beside its experts: phase, request, token id."""
EXPERT_BYTES = 4
"""Of a chosen expert of a token in a trace: its number and its weight."""


def kept_batches(
    folder: Path, options: Options, requests: Sequence[Request], work: Workload, ranks: Ranks
) -> KeptBatches:
    """Where the batches of this evaluation are kept, in the folder of its results. Raises UserError."""
    identity = _identity(options, requests, work, ranks)
    kept = KeptBatches(folder / f"{PREFIX}{digest(identity)}", options.evaluation.resume)
    if kept.resume and not kept.count():
        _refuse_others(folder, identity)
    kept.make_folder()
    if ranks.first:
        with replacing(kept.folder / IDENTITY) as file:
            file.write(json.dumps(identity).encode())
    return kept


def _identity(options: Options, requests: Sequence[Request], work: Workload, ranks: Ranks) -> dict[str, Any]:
    """What makes two evaluations the same, as JSON gives it back; names of options are theirs."""
    fields = options.fields()
    adapters = fields.pop("adapters")
    rows = [[request.row["input_ids"], request.prompt_ids] for request in requests]
    choices = [[choice.row["input_ids"] for choice in batch] for batch in work.choices]
    found = {
        **fields,
        "model weights": checkpoint_fingerprint(options.model.model_name),
        **{f"adapter {name}": path for name, path in adapters.items()},
        **{f"weights of {name}": file_sha256(Path(adapters[name]) / ADAPTER_WEIGHTS) for name in adapters},
        "tokens of requests": digest(rows),
        "tokens of choices": digest(choices),
        "new tokens": work.max_new_tokens,
        "ends of answers": work.stop,
        "number of ranks": ranks.world_size if options.rerouting or options.engine else None,
        **{f"version of {package}": version(package) for package in ("torch", "transformers", "peft")},
    }
    return json.loads(json.dumps(found))


def _refuse_others(folder: Path, identity: dict[str, Any]) -> None:
    """UserError, with both values, if the folder keeps batches of other evaluations: one of them is meant."""
    others = [kept for kept in map(KeptBatches, folder.glob(f"{PREFIX}*")) if kept.count()]
    if changed := min((_changed(each, identity) for each in others), key=len, default=None):
        raise UserError(
            f"--resume: '{folder}' keeps batches of another evaluation: {listed(changed)}; give the same "
            "again, or leave out --resume to measure all anew"
        )


def _changed(kept: KeptBatches, identity: dict[str, Any]) -> dict[str, tuple]:
    """Name -> value of the evaluation that was kept, and now."""
    try:
        before = json.loads((kept.folder / IDENTITY).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        before = None
    if not isinstance(before, dict):
        return {"record of its settings": ("missing or damaged", "needed")}
    names = sorted({*before, *identity})
    return {
        name: (before.get(name), identity.get(name))
        for name in names
        if before.get(name) != identity.get(name)
    }


@contextmanager
def stoppable(kept: KeptBatches, console: Console) -> Iterator[None]:
    """A block that measures. What was kept before, and what a stopped block has kept, is said."""
    before = kept.count()
    if kept.resume and before:
        console.print(f"going on with {before} batches that were measured before, in {kept.folder}")
    elif kept.resume:
        console.print(f"--resume: nothing of this evaluation is in {kept.folder.parent}: all is measured")
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
    if work.free_running:
        tokens += sum(answered) + len(answered) * work.free_running.tokens
    chosen = sum(layer.top_k for layer in evaluated.moe_layers)
    return 2 * variants * tokens * (STEP_BYTES + EXPERT_BYTES * chosen)
