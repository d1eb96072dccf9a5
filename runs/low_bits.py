"""What experts in low bits cost and buy: format x adapter x re-routing, each within the same bytes.

    python runs/low_bits.py --json F.json --model_name PATH --lora_save_path ADAPTER \\
      --dataset_name hellaswag --routing_strategy margin --expert_budget 16.7%

All other options are those of inference.py; --resume True goes on with a run that was stopped.
--expert_budget is bytes, or a share of the experts as PATH stores them: every format gets as many bytes for
its decode cache, and holds the experts that fit. The experts are packed as `dwellmoe pack` does.
Perplexity, hits and bytes read are of reference text, all experts in memory in their format and the cache
simulated; speed is of answers (--generate_limit) whose experts the engine reads into such a cache.
"""

import argparse
import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Console

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from dwellmoe.cache.budget import ModelSizes, budget_of, is_whole
from dwellmoe.errors import UserError, run_command
from dwellmoe.evaluation.evaluated_model import EvaluatedModel, rerouting_budget, rerouting_fields
from dwellmoe.evaluation.kept_batches import KeptBatches
from dwellmoe.evaluation.measure import Measured, Workload, measure
from dwellmoe.evaluation.options import REROUTED, Options
from dwellmoe.evaluation.ranks import Ranks
from dwellmoe.evaluation.report.cache_rows import counted, rerouting_row
from dwellmoe.evaluation.report.comparison import perplexity_ratio
from dwellmoe.evaluation.report.output import write_json
from dwellmoe.evaluation.report.summary import readable_bytes
from dwellmoe.evaluation.rerouting import NO_REROUTING, ReroutingSettings
from dwellmoe.evaluation.unfinished import kept_batches, stoppable
from dwellmoe.evaluation.wording import asked_task
from dwellmoe.experts.formats import AS_STORED, parse_format
from dwellmoe.loading import active_variant, quiet
from dwellmoe.offload import engine_of
from dwellmoe.offload.pack import pack
from dwellmoe.provenance import provenance
from inference import load_work, parse
from model_loader import load_evaluated_model
from runs.free_running import number

TEXT = "teacher_forced"
IN_FOLDER_NAMES = str.maketrans(":=,", "---")
"""What stands in the name of a folder in place of a character of a format."""
HEAD = (
    "| format | one expert | experts a layer | adapter | re-routed | perplexity | against the same as stored "
    "| hit rate | read a token | tokens/s | processor time a token |"
)


class Form(NamedTuple):
    """A format, and the folder of the model whose experts are in it."""

    name: str
    folder: Path

    @property
    def folder_name(self) -> str:
        return self.name.translate(IN_FOLDER_NAMES)


def stored_form(model_name: str) -> Form:
    """The model as it is stored."""
    return Form(AS_STORED, Path(model_name))


def packed_forms(model_name: str, formats: Sequence[str], packed_dir: Path) -> Iterator[Form]:
    """The model packed in every format. Raises UserError."""
    for name in formats:
        form = Form(name, packed_dir / Path(model_name).resolve().name)
        form = form._replace(folder=form.folder / form.folder_name)
        pack(model_name, form.folder, name)
        yield form


def in_form(options: Options, form: Form, expert_budget: str, live: bool = False) -> Options:
    """The options for one format; `live`: with the experts in the engine's cache, not all in memory."""
    model = replace(options.model, model_name=str(form.folder), expert_format=AS_STORED)
    cache = replace(options.cache, expert_budget=expert_budget, reroute_live=live)
    return options._replace(model=model, cache=cache)


def cache_bytes(rerouting: ReroutingSettings, evaluated: EvaluatedModel) -> int:
    """The bytes of a budget. Raises UserError for one that does not hold the experts of one token."""
    rerouting_budget(rerouting, evaluated)
    layers = evaluated.moe_layers
    sizes = ModelSizes(len(layers), layers[0].num_experts, evaluated.expert_bytes)
    scope = "layer" if is_whole(rerouting.budget) else "global"  # bytes that are no whole slots count too
    found = budget_of(sizes, scope, rerouting.budget).capacity_bytes
    assert found is not None, "the sizes of experts are known"
    return found


def table(options: Options, forms: Sequence[Form], budget: int, rows_dir: Path) -> Iterator[dict]:
    """The rows of every format, each against the same adapter and routing with the experts as stored."""
    stored: dict[str, Measured] = {}
    for form in forms:
        simulated = in_form(options, form, f"{budget}B")
        evaluated = load_evaluated_model(simulated)
        requests, work = load_work(simulated, asked_task(simulated, evaluated.tokenizer), evaluated)
        kept = kept_batches(rows_dir / form.folder_name, simulated, requests, work, Ranks())
        with stoppable(kept, Console(stderr=True)):
            found = {
                variant: scored(evaluated, simulated, work, variant, kept) for variant in options.variants
            }
            stored = stored or found
            assert simulated.rerouting is not None
            slots = rerouting_budget(simulated.rerouting, evaluated).capacity
            answered = answers(in_form(options, form, str(slots), live=True), work, kept)
        for variant in options.variants:
            row = row_of(evaluated, simulated, variant, found[variant], stored)
            yield {"format": form.name} | row | {"engine": answered.get(variant)}


def scored(
    evaluated: EvaluatedModel, options: Options, work: Workload, variant: str, kept: KeptBatches
) -> Measured:
    """Reference text, routed by a simulated cache."""
    with active_variant(evaluated.model, variant.removesuffix(REROUTED)):
        found = measure(
            evaluated,
            replace(work, generated=[], choices=[]),
            Ranks(),
            variant,
            rerouting=options.variants[variant],
            kept=kept,
        )
    assert found is not None, "there is one rank"
    return found


def answers(options: Options, work: Workload, kept: KeptBatches) -> dict[str, dict]:
    """By variant what the engine did for the answers, from a cold cache on; nothing without answers."""
    if not work.generated:
        return {}
    found = {variant: kept.get(f"{variant}-engine") for variant in options.variants}
    if None not in found.values():
        return found
    evaluated = load_evaluated_model(options)
    engine = engine_of(evaluated.model)
    assert engine is not None
    with engine:
        for variant in options.variants:
            answered = partial(_answered, evaluated, options, work, variant)
            found[variant] = kept.get_or(f"{variant}-engine", answered)
    return found


def _answered(evaluated: EvaluatedModel, options: Options, work: Workload, variant: str) -> dict[str, Any]:
    """From a cold cache on; the processor's time includes the prompts, and leaves out a first answer that
    warms up.
    """
    rerouting = options.variants[variant] if variant.endswith(REROUTED) else None
    asked = replace(work, scored=[], choices=[])
    first = replace(asked, generated=asked.generated[:1])
    with active_variant(evaluated.model, variant.removesuffix(REROUTED)):
        measure(evaluated, first, Ranks(), f"{variant}, warm-up", rerouting=rerouting)
        with counted(evaluated) as counts:
            began = time.process_time()
            found = measure(evaluated, asked, Ranks(), f"{variant}, engine", rerouting=rerouting)
            processor_seconds = time.process_time() - began
    assert found is not None, "there is one rank"
    decode = counts["decode"]
    tokens = sum(timing.decoded_tokens for timing in found.timings)
    seconds = sum(timing.decode_seconds for timing in found.timings)
    return {
        "answers": len(found.answers),
        "tokens": tokens,
        "tokens_per_second": tokens / seconds if tokens else None,
        "processor_seconds_per_token": processor_seconds / tokens if tokens else None,
        "hit_rate": counts["decode_cache"]["hit_rate"],
        "bytes_read_per_token": decode["disk_bytes"] / tokens if tokens else None,
        "expert_memory_bytes": counts["expert_memory_bytes"],
    }


def row_of(
    evaluated: EvaluatedModel, options: Options, variant: str, found: Measured, stored: dict[str, Measured]
) -> dict[str, Any]:
    """What one format, adapter and routing costs and gains."""
    rerouting = options.variants[variant]
    assert rerouting is not None
    resamples = options.evaluation.bootstrap_samples
    untouched = stored[next(iter(stored))]
    counts = rerouting_row(found, untouched, TEXT, expert_bytes=evaluated.expert_bytes, resamples=resamples)
    return {
        "variant": variant.removesuffix(REROUTED),
        "strategy": rerouting.strategy,
        "expert_bytes": evaluated.expert_bytes[0],
        **rerouting_fields(rerouting, evaluated),
        **counts.as_dict(),
        **perplexity_ratio(found, stored[variant], resamples).as_dict("perplexity_ratio_as_stored"),
        **perplexity_ratio(found, untouched, resamples).as_dict("perplexity_ratio_untouched"),
    }


def line(row: dict) -> str:
    """The row of a table in Markdown."""
    engine = row["engine"] or {}
    speed, processor = engine.get("tokens_per_second"), engine.get("processor_seconds_per_token")
    cells = [
        f"`{row['format']}`",
        readable_bytes(row["expert_bytes"]),
        str(row["capacity"]),
        "none" if row["variant"] == "base" else row["variant"],
        "no" if row["strategy"] == NO_REROUTING else f"`{row['strategy']}`",
        f"{row['perplexity']:.2f}",
        "-" if row["format"] == AS_STORED else number(row, "perplexity_ratio_as_stored", 4),
        number(row, "hit_rate"),
        readable_bytes(row["miss_bytes_per_token"]),
        "-" if speed is None else f"{speed:.0f}",
        "-" if processor is None else f"{1000 * processor:.1f} ms",
    ]
    return f"| {' | '.join(cells)} |"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", required=True, type=Path)
    parser.add_argument(
        "--formats",
        nargs="+",
        default=["int8", "int4:group=32", "mxfp4"],
        help="formats of `dwellmoe pack` beside the model as it is stored",
    )
    parser.add_argument(
        "--packed_dir",
        type=Path,
        default=ROOT / ".cache" / "packed",
        help="folder for the packed models, which are used again",
    )
    arguments, others = parser.parse_known_args()
    for name in arguments.formats:
        if parse_format(name) is None:
            raise UserError(f"--formats {name}: give formats other than the checkpoint's own")
    quiet()
    options = parse(others)
    if options.rerouting is None or options.rerouting.strategy == NO_REROUTING:
        raise UserError("--routing_strategy: give the strategy to re-route by, e.g. margin")
    model_name = options.model.model_name
    evaluated = load_evaluated_model(in_form(options, stored_form(model_name), options.rerouting.budget))
    budget, model_fields = cache_bytes(options.rerouting, evaluated), evaluated.fields()
    del evaluated  # the next one takes as much memory
    forms = [stored_form(model_name), *packed_forms(model_name, arguments.formats, arguments.packed_dir)]
    rows_dir = arguments.json.with_name(f"{arguments.json.stem}-unfinished")
    print(HEAD, "|---" * HEAD.count(" |") + "|", sep="\n")
    rows = []
    for row in table(options, forms, budget, rows_dir):
        print(line(row), flush=True)
        rows.append(row)
    report = {
        "schema_version": 1,
        "command": "low_bits",
        "settings": options.fields() | {"formats": arguments.formats},
        "model": model_fields,
        "cache_bytes": budget,
        "rows": rows,
        "made": provenance(),
    }
    write_json(arguments.json, report)
    shutil.rmtree(rows_dir)


if __name__ == "__main__":
    run_command(main)
