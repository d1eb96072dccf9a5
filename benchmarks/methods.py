"""Measures every method side by side: eviction policy, re-routing, training, and both, at several budgets.

    python benchmarks/methods.py --json F.json --plot F.png --model_name PATH --lora_save_path ADAPTER

All other options are those of inference.py; without an adapter (`--use_lora False`) training has no points.
With `--control_path` what is not trained for locality is the control, which saw the same data, not the base.
Reference text only: the same tokens for all, one pass a measurement, decode counted in a simulated cache.
"""

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from dwellmoe.cache.replay.memory_equivalent import memory_equivalent
from dwellmoe.errors import UserError, run_command
from dwellmoe.evaluation.evaluated_model import EvaluatedModel, rerouting_fields
from dwellmoe.evaluation.measure import Measured, Workload, measure, one_after_the_other, workload
from dwellmoe.evaluation.options import Options
from dwellmoe.evaluation.ranks import Ranks
from dwellmoe.evaluation.report.cache_rows import rerouting_row
from dwellmoe.evaluation.report.comparison import perplexity_ratio, switch_rate_ratio
from dwellmoe.evaluation.report.output import write_json
from dwellmoe.evaluation.requests import load_requests, sample_spec_of
from dwellmoe.evaluation.rerouting import NO_REROUTING, ReroutingSettings
from dwellmoe.evaluation.wording import asked_task
from dwellmoe.loading import BASE, active_variant, quiet
from dwellmoe.plots import methods
from dwellmoe.plots.style import save
from inference import parse
from model_loader import load_evaluated_model

CONTROL, TUNED = "control", "tuned"
POLICIES = ("lru", "lfru", "lfu", "lrfu:decay=0.95")
STRATEGIES = (
    "margin:loss=0.05",
    "margin:loss=0.1",
    "margin:loss=0.15",
    "mocce:strength=0.4",
    "cecar:scale=0.3",
)


def setups(budgets: list[str], policies: list[str], strategies: list[str]) -> Iterator[ReroutingSettings]:
    """Every policy without re-routing, and every strategy under the first of them."""
    for budget in budgets:
        pairs = [(NO_REROUTING, policy) for policy in policies]
        pairs += [(strategy, policies[0]) for strategy in strategies]
        for strategy, policy in pairs:
            yield ReroutingSettings(strategy, budget, policy, prefill_handoff="recent:tokens=8")


def load_work(options: Options, evaluated: EvaluatedModel) -> Workload:
    task = asked_task(options, evaluated.tokenizer)
    settings = options.evaluation
    sample_spec = sample_spec_of(settings, task, options.row_tokens(task, evaluated.model))
    requests = load_requests(task, settings.split, evaluated.tokenizer, sample_spec, seed=options.seed)
    return one_after_the_other(
        workload(requests, [], settings.eval_batch_size, generate_limit=0, max_new_tokens=1)
    )


def point(
    evaluated: EvaluatedModel,
    variant: str,
    rerouting: ReroutingSettings,
    found: Measured,
    base: Measured,
    resamples: int,
) -> dict:
    """One point of the figure: the method, what it gained and what it cost."""
    rerouted = rerouting.strategy != NO_REROUTING
    return {
        "method": methods.METHODS[2 * (variant == TUNED) + rerouted],
        "name": rerouting.strategy if rerouted else rerouting.policy,
        "variant": variant,
        "budget_percent": float(rerouting.budget.removesuffix("%")),
        "strategy": rerouting.strategy,
        **rerouting_fields(rerouting, evaluated),
        **rerouting_row(
            found, base, "teacher_forced", expert_bytes=evaluated.expert_bytes, resamples=resamples
        ).as_dict(),
        **switch_rate_ratio(found, base, resamples).as_dict("switch_rate_ratio"),
        **perplexity_ratio(found, base, resamples).as_dict("perplexity_ratio"),
        "memory_equivalent": _worth(found, base, rerouting.budget, resamples),
    }


def _worth(found: Measured, base: Measured, budget: str, resamples: int) -> dict | None:
    """The LRU cache that the base's routing needs to miss as seldom; None where it is the same routing."""
    trace, untouched = (measured.recordings["teacher_forced"].trace for measured in (found, base))
    if (trace.experts == untouched.experts).all():
        return None
    return memory_equivalent(trace, untouched, budget, resamples=resamples).as_dict()


def run(options: Options, evaluated: EvaluatedModel, *levels: list[str]) -> list[dict]:
    """All points, each printed as soon as it is measured."""
    work = load_work(options, evaluated)
    points: list[dict] = []
    bases: dict[str, Measured] = {}
    names = list(options.adapters)
    for variant in names if CONTROL in names else (BASE, *names):
        for rerouting in setups(*levels):
            title = f"{variant} {rerouting.strategy} {rerouting.policy}"
            with active_variant(evaluated.model, variant):
                found = measure(evaluated, work, Ranks(), title, rerouting=rerouting)
            assert found is not None, "there is one rank"
            base = bases.setdefault(rerouting.budget, found)
            resamples = options.evaluation.bootstrap_samples
            points.append(point(evaluated, variant, rerouting, found, base, resamples=resamples))
            print(line(points[-1]), flush=True)
    return points


def line(row: dict) -> str:
    return (
        f"{row['budget_percent']:5g} % {row['variant']:<8}{row['name']:<20} hits {row['hit_rate']:.4f} "
        f"misses {row['misses_ratio']:.3f}x {row['miss_bytes_per_token'] / 1e6:.3f} MB a token, "
        f"switches {row['switch_rate_ratio']:.3f}x, "
        f"perplexity {row['perplexity']:.3f} {row['perplexity_ratio']:.4f}x"
        f"{_span(row['perplexity_ratio_ci95'])}, "
        f"KL {row['kl_next_token']:.4f}, agreement {row['agreement']:.3f}{_worth_in_words(row)}"
    )


def _worth_in_words(row: dict) -> str:
    worth = row["memory_equivalent"]
    if worth is None:
        return ""
    bound = f"{worth['bound']} " if worth["bound"] else ""
    return f", worth {bound}{worth['ratio']:.2f}x the cache{_span(worth['ratio_ci95'])}"


def _span(interval: list[float] | None) -> str:
    return f" ({interval[0]:.4f}-{interval[1]:.4f})" if interval else ""


def at_equal_quality(points: list[dict], most: float) -> list[str]:
    """For each budget and method the point with the fewest misses at up to `most` times the perplexity."""
    best: dict[tuple[float, str], dict] = {}
    for point in sorted(points, key=lambda point: point["misses_ratio"]):
        if point["perplexity_ratio"] <= most:
            best.setdefault((point["budget_percent"], point["method"]), point)
    ordered = sorted(best.values(), key=lambda point: (point["budget_percent"], -point["misses_ratio"]))
    return [f"{point['method']:<24}{line(point)}" for point in ordered]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", required=True, type=Path)
    parser.add_argument("--plot", type=Path)
    parser.add_argument(
        "--most_perplexity",
        type=float,
        default=1.02,
        help="perplexity ratio up to which methods are compared",
    )
    parser.add_argument("--budgets", nargs="+", default=["12.5%", "25%", "50%"])
    parser.add_argument("--policies", nargs="+", default=list(POLICIES), metavar="POLICY")
    parser.add_argument("--strategies", nargs="+", default=list(STRATEGIES), metavar="STRATEGY")
    arguments, others = parser.parse_known_args()
    if wrong := [budget for budget in arguments.budgets if not budget.endswith("%")]:
        raise UserError(f"--budgets {wrong[0]}: give percent, e.g. 25%")
    quiet()
    options = parse(others)
    evaluated = load_evaluated_model(options)
    levels = {name: getattr(arguments, name) for name in ("budgets", "policies", "strategies")}
    points = run(options, evaluated, *levels.values())
    print(f"fewest misses at up to {arguments.most_perplexity:g}x the perplexity:")
    print(*at_equal_quality(points, arguments.most_perplexity), sep="\n", flush=True)
    settings = options.fields() | {"levels": levels}
    report = {"schema_version": 1, "command": "methods", "settings": settings, "points": points}
    write_json(arguments.json, report | {"model": evaluated.fields()})
    if arguments.plot:
        data = f"{options.data.dataset_name} {options.evaluation.split}"
        about = f"{evaluated.name}, {data}, reference text, decode"
        save(methods.draw(points, about), arguments.plot)


if __name__ == "__main__":
    run_command(main)
