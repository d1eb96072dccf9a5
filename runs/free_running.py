"""Prices re-routing in text that a model writes by itself, with the best setting of each strategy.

    python runs/free_running.py --json F.json --model_name PATH --dataset_name hellaswag --free_running 64

All other options are those of inference.py; --resume True goes on with a run that was stopped. Settings
are chosen on the reference text of the validation split: of each strategy the one that costs a level of
perplexity, on straight lines between measured settings. They are judged on --split, on reference text (all
requests) and on text that is written (--generate_limit).
"""

import argparse
import shutil
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
from rich.console import Console

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from dwellmoe.errors import UserError, run_command
from dwellmoe.evaluation.evaluated_model import EvaluatedModel, rerouting_fields
from dwellmoe.evaluation.kept_batches import KeptBatches
from dwellmoe.evaluation.measure import Measured, Workload, measure, one_after_the_other, workload
from dwellmoe.evaluation.options import Options
from dwellmoe.evaluation.ranks import Ranks
from dwellmoe.evaluation.report.cache_rows import rerouting_row
from dwellmoe.evaluation.report.comparison import perplexity_ratio
from dwellmoe.evaluation.report.free_running import FREE_RUNNING, free_running_fields
from dwellmoe.evaluation.report.output import write_json
from dwellmoe.evaluation.report.report import finite
from dwellmoe.evaluation.requests import load_requests, sample_spec_of
from dwellmoe.evaluation.rerouting import NO_REROUTING
from dwellmoe.evaluation.unfinished import kept_batches, stoppable
from dwellmoe.evaluation.wording import asked_task
from dwellmoe.loading import BASE, active_variant, quiet
from inference import parse
from model_loader import load_evaluated_model

CURVES = {
    "margin:loss={}": (0.0125, 0.025, 0.05, 0.1, 0.2),
    "own_weight:below={}": (0.015, 0.03, 0.06, 0.09, 0.13),
    "regret:swaps=2,budget={}": (0.025, 0.05, 0.1, 0.2, 0.4),
    "regret:swaps=99,budget={}": (0.025, 0.05, 0.1, 0.2, 0.4),
}
"""Settings that are measured: a strategy, and values of its limit, until one costs the highest level."""


class Point(NamedTuple):
    """What a strategy with some limit costs and gains on the validation split."""

    limit: float
    perplexity_ratio: float
    misses_ratio: float


class Choice(NamedTuple):
    """A setting that should cost a level of perplexity, with what it should miss."""

    level: float
    spec: str
    misses_ratio: float

    @property
    def strategy(self) -> str:
        return self.spec.partition(":")[0]


class Job(NamedTuple):
    """What is measured with every setting, and where that is kept."""

    evaluated: EvaluatedModel
    options: Options
    work: Workload
    kept: KeptBatches

    def measured(self, spec: str) -> Measured:
        """With one strategy."""
        assert self.options.rerouting is not None
        rerouting = replace(self.options.rerouting, strategy=spec)
        with active_variant(self.evaluated.model, BASE):
            found = measure(self.evaluated, self.work, Ranks(), spec, rerouting=rerouting, kept=self.kept)
        assert found is not None, "there is one rank"
        return found


@contextmanager
def job(
    options: Options, evaluated: EvaluatedModel, split: str, written: bool, folder: Path
) -> Iterator[Job]:
    """The requests of a split, and whether text is written after the first of them."""
    task = asked_task(options, evaluated.tokenizer)
    sample_spec = sample_spec_of(options.evaluation, task, options.row_tokens(task, evaluated.model))
    requests = load_requests(task, split, evaluated.tokenizer, sample_spec, seed=options.seed)
    work = one_after_the_other(
        workload(
            requests,
            [],
            options.evaluation.eval_batch_size,
            generate_limit=sample_spec.generated if written else 0,
            max_new_tokens=1,
            free_running=options.free_running if written else None,
        )
    )
    kept = kept_batches(folder, options, requests, work, Ranks())
    with stoppable(kept, Console(stderr=True)):
        yield Job(evaluated, options, work, kept)


def chosen(validation: Job, levels: Sequence[float]) -> Iterator[Choice]:
    """For each level and curve the setting on it that costs this much."""
    base = validation.measured(NO_REROUTING)
    for template, limits in CURVES.items():
        points = [Point(0.0, 1.0, 1.0)]
        for limit in limits:
            found = validation.measured(template.format(limit))
            points.append(point(validation.evaluated, limit, found, base))
            print(f"{template.format(limit)}: {points[-1]}", flush=True)
            if points[-1].perplexity_ratio > max(levels):
                break
        yield from (at_level(level, template, points) for level in levels)


def point(evaluated: EvaluatedModel, limit: float, found: Measured, base: Measured) -> Point:
    row = rerouting_row(found, base, "teacher_forced", expert_bytes=evaluated.expert_bytes, resamples=0)
    cost = perplexity_ratio(found, base, 0).value
    assert cost is not None and row.misses_ratio.value is not None, "both have the base's tokens"
    return Point(limit, cost, row.misses_ratio.value)


def at_level(level: float, template: str, points: Sequence[Point]) -> Choice:
    """The setting between two points that costs the level; the last one where none costs as much."""
    limits, costs, misses = zip(*points, strict=True)
    limit = np.interp(level, np.maximum.accumulate(costs), limits)
    return Choice(level, template.format(f"{limit:.3g}"), float(np.interp(limit, limits, misses)))


def best_of_each_strategy(choices: Sequence[Choice]) -> list[Choice]:
    """Of each level and strategy the choice with the fewest misses; by level."""
    best: dict[tuple[float, str], Choice] = {}
    for choice in sorted(choices, key=lambda choice: choice.misses_ratio):
        best.setdefault((choice.level, choice.strategy), choice)
    return sorted(best.values(), key=lambda choice: (choice.level, choice.strategy))


def priced(
    evaluated: EvaluatedModel, options: Options, choice: Choice, found: Measured, base: Measured
) -> dict:
    """What a setting gains and costs on both kinds of text."""
    assert options.rerouting and options.free_running
    resamples = options.evaluation.bootstrap_samples
    reference, written = (
        rerouting_row(found, base, text, expert_bytes=evaluated.expert_bytes, resamples=resamples).as_dict()
        for text in ("teacher_forced", FREE_RUNNING)
    )
    return {
        "level": choice.level,
        "strategy": choice.spec,
        **rerouting_fields(options.rerouting, evaluated),
        "reference": reference | perplexity_ratio(found, base, resamples).as_dict("perplexity_ratio"),
        FREE_RUNNING: written | free_running_fields(found, base, options.free_running, resamples),
    }


HEAD = (
    "| level | strategy | perplexity | misses | own text: hits | misses | perplexity by the untouched "
    "| KL own path | KL reference | feedback | repeated 4-grams |"
)


def line(row: dict) -> str:
    """The row of a table in Markdown."""
    reference, written = row["reference"], row[FREE_RUNNING]
    cells = [
        f"{row['level']:g}" if row["level"] else "-",
        f"`{row['strategy']}`",
        number(reference, "perplexity_ratio", 4),
        number(reference, "misses_ratio"),
        number(written, "hit_rate"),
        number(written, "misses_ratio"),
        number(written, "perplexity_untouched_ratio"),
        number(written, "kl_own_path", 4),
        number(written, "kl_reference", 4),
        number(written, "feedback_factor", 2),
        number(written, "repeated_4grams"),
    ]
    return f"| {' | '.join(cells)} |"


def number(row: dict, name: str, digits: int = 3) -> str:
    """A figure of a row with its interval, if it has them."""
    value, interval = row[name], row[f"{name}_ci95"]
    if value is None:
        return "-"
    return f"{value:.{digits}f}" + (
        f" ({interval[0]:.{digits}f}-{interval[1]:.{digits}f})" if interval else ""
    )


def judged(test: Job, choices: Sequence[Choice]) -> Iterator[dict]:
    """The untouched model first, then every choice, each printed as soon as it is measured."""
    base = test.measured(NO_REROUTING)
    print(HEAD, "|---" * HEAD.count(" |") + "|", sep="\n")
    for choice in (Choice(0.0, NO_REROUTING, 1.0), *choices):
        found = base if choice.spec == NO_REROUTING else test.measured(choice.spec)
        row = priced(test.evaluated, test.options, choice, found, base)
        print(line(row), flush=True)
        yield row


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", required=True, type=Path)
    parser.add_argument(
        "--levels",
        nargs="+",
        type=float,
        default=[1.005, 1.01, 1.02],
        help="ratios of perplexity that a setting may cost",
    )
    parser.add_argument(
        "--validation_requests", type=int, default=64, help="requests on which settings are chosen"
    )
    arguments, others = parser.parse_known_args()
    if not all(level > 1 for level in arguments.levels):
        raise UserError("--levels: give ratios above 1, e.g. 1.01")
    quiet()
    options = parse(["--routing_strategy", NO_REROUTING, *others])
    if options.free_running is None:
        raise UserError("--free_running: give the tokens that are written after each prompt")
    evaluated = load_evaluated_model(options)
    folder = arguments.json.with_name(f"{arguments.json.stem}-unfinished")
    evaluation = replace(options.evaluation, limit_evaluation=arguments.validation_requests)
    some = options._replace(evaluation=evaluation)
    with job(some, evaluated, "validation", False, folder / "validation") as validation:
        choices = best_of_each_strategy(list(chosen(validation, arguments.levels)))
    settings = options.fields() | vars(arguments) | {"json": None}
    report = {
        "schema_version": 1,
        "command": "free_running",
        "settings": settings,
        "model": evaluated.fields(),
    }
    with job(options, evaluated, options.evaluation.split, True, folder / "judged") as test:
        rows = list(judged(test, choices))
    report |= {"choices": [choice._asdict() for choice in choices], "rows": rows}
    write_json(arguments.json, finite(report))
    shutil.rmtree(folder)


if __name__ == "__main__":
    run_command(main)
