"""Trains and measures every point of objectives x weights x scopes x seeds, and draws the Pareto fronts.

    python runs/sweep.py --out DIR --objectives js overlap --weights 0.1 0.3 --seeds 1 2 3 -- OPTIONS

OPTIONS are passed to main.py, those of the model and the data to inference.py as well. A point is one
training: a JSON file in DIR/points, and a point whose file exists is not run again. The control (weight 0) is
trained once for each scope and seed. With `--tasks` the accuracy of each point is written to DIR/tasks in the
same way. Reports of benchmarks/methods.py in DIR/methods are drawn beside the fronts.
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import mean
from urllib.parse import quote

from dwellmoe.cache.budget import layer_slots
from dwellmoe.cache.replay.replay import replay
from dwellmoe.cache.trace import RoutingTrace
from dwellmoe.errors import UserError, run_command
from dwellmoe.files import replacing
from dwellmoe.plots import pareto
from dwellmoe.plots.style import save

ROOT = Path(__file__).resolve().parent.parent
BUDGETS = (12.5, 25.0, 50.0)
"""Percent of a layer's experts that the cache holds."""
SHARED = ("--model_name", "--dataset_name", "--max_words_len", "--dtype", "--experts_implementation")
KEPT = ("perplexity", "ecr", "choice_accuracy")
"""Fields of a report that go into a point's file, with their intervals."""
CONTROL = "control"
SCHEMA_VERSION = 2
IN_FILE_NAMES = {":": "-", "=": "", ",": "-", "%": "pc", "*": "x"}
"""What stands in the name of a file in place of a character of an objective."""
TASK_REQUESTS = "256"
"""Requests of each task, drawn with one seed for all points."""


@dataclass(frozen=True)
class Point:
    """One training."""

    objective: str
    weight: float
    scope: str
    seed: int

    @property
    def is_control(self) -> bool:
        return self.objective == CONTROL

    @property
    def control(self) -> "Point":
        """The same training without locality."""
        return Point(CONTROL, 0.0, self.scope, self.seed)

    @property
    def name(self) -> str:
        objective = self.objective.translate(str.maketrans(IN_FILE_NAMES))
        return f"{objective}_{self.weight:g}_{self.scope}_{self.seed}"

    def options(self) -> list[str]:
        chosen = ["--consecutive_expert_loss_weight", f"{self.weight:g}", "--train_scope", self.scope]
        if not self.is_control:
            chosen += ["--consecutive_expert_loss_type", self.objective]
        return [*chosen, "--seed", str(self.seed)]


def points_of(args: argparse.Namespace) -> Iterator[Point]:
    """The controls first, then every objective at every weight."""
    for scope in args.scopes:
        for seed in args.seeds:
            yield Point(CONTROL, 0.0, scope, seed)
            for objective in args.objectives:
                yield from (Point(objective, weight, scope, seed) for weight in args.weights if weight > 0)


def run_point(point: Point, out: Path, options: Sequence[str]) -> dict:
    """Trains and measures one point. Raises UserError with the last line of a command that fails."""
    adapter, results = out / "adapters" / point.name, out / "reports" / point.name
    saving = ["--lora_save_path", str(adapter)]
    if not (adapter / "training_summary.json").exists():
        command("main.py", *options, *point.options(), *saving, "--resume_from_checkpoint", "auto")
    beside = [] if point.is_control else ["--control_path", str(out / "adapters" / point.control.name)]
    measuring = ["--choice_limit", "0", "--policies", "lru"]
    report = evaluated(results, *shared_options(options), *saving, *beside, *measuring)
    compared = report["comparison"]["tuned_vs_base" if point.is_control else "tuned_vs_control"]
    return {
        "schema_version": SCHEMA_VERSION,
        **asdict(point),
        "options": list(options),
        "compared_with": "base" if point.is_control else CONTROL,
        "comparison": compared,
        "variants": variants(report, results),
    }


def run_task(point: Point, out: Path, options: Sequence[str], task: str) -> dict:
    """Accuracy of one trained point on a task, by the likelihood of its choices."""
    own = ["--lora_save_path", str(out / "adapters" / point.name), "--dataset_name", task]
    own += ["--limit_evaluation", TASK_REQUESTS, "--choice_limit", TASK_REQUESTS]
    # The last --dataset_name counts, so the task's comes after the training's.
    rows = evaluated(out / "reports" / task_file(point, task), *shared_options(options), *own)["quality"]
    found = {name: picked(rows, variant=name) for name in ("base", "tuned")}
    return {"schema_version": SCHEMA_VERSION, **asdict(point), "task": task, **found}


def task_file(point: Point, task: str) -> str:
    """A file name for a point and a task, which may be a name or a path."""
    return f"{point.name}-{quote(task, safe='')}"


def evaluated(results: Path, *options: str) -> dict:
    """The report of inference.py, without generated answers. Raises UserError."""
    command("inference.py", *options, "--results_dir", str(results), "--generate_limit", "0", "--seed", "0")
    return json.loads((results / "report.json").read_text())


def variants(report: dict, results: Path) -> dict[str, dict]:
    """Base and tuned: perplexity, ECR, and bytes LRU fetches a token at each budget, with 95 % intervals."""
    return {
        name: {
            **picked(report["quality"], variant=name),
            **picked(report["locality"], variant=name, text="teacher_forced", phase="decode"),
            "budgets": budget_rows(RoutingTrace.load(results / f"trace-{name}-teacher_forced.safetensors")),
        }
        for name in ("base", "tuned")
    }


def picked(rows: Sequence[dict], **wanted: str) -> dict:
    """The kept fields of the one row with these values."""
    row = next(row for row in rows if all(row[name] == value for name, value in wanted.items()))
    return {name: row[name] for each in KEPT for name in (each, f"{each}_ci95") if name in row}


def budget_rows(trace: RoutingTrace) -> list[dict]:
    """A hit-rate row for each budget (at least K slots), with the interval of the bytes fetched a token."""
    rows = []
    for percent in BUDGETS:
        row = replay(trace, "lru", layer_slots(trace, f"{percent}%"), phase="decode").as_dict()
        full = row["miss_bytes_per_token"] / max(1 - row["hit_rate"], 1e-12)
        ends = [full * (1 - rate) for rate in reversed(row["hit_rate_ci95"])]
        rows.append({"budget_percent": percent, "miss_bytes_per_token_ci95": ends, **row})
    return rows


def shared_options(options: Sequence[str]) -> list[str]:
    """The options that inference.py needs as well."""
    pairs = [options[i : i + 2] for i, option in enumerate(options) if option in SHARED]
    return [text for pair in pairs for text in pair]


def command(script: str, *arguments: str) -> None:
    done = subprocess.run([sys.executable, ROOT / script, *arguments], stderr=subprocess.PIPE, text=True)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise UserError(f"{script} {' '.join(arguments)}: {last.removeprefix('error: ')}")


def write(path: Path, record: dict) -> None:
    with replacing(path) as file:
        file.write(f"{json.dumps(record, indent=1)}\n".encode())


def parse() -> tuple[argparse.Namespace, list[str]]:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, help="folder of points, adapters and reports")
    parser.add_argument("--objectives", nargs="+", default=["js", "overlap", "reuse", "cache_miss"])
    parser.add_argument("--weights", nargs="+", type=float, default=[0.1, 0.3])
    parser.add_argument("--seeds", nargs="+", type=int, default=[1, 2, 3])
    parser.add_argument("--scopes", nargs="+", default=["router_attention"])
    parser.add_argument("--tasks", nargs="*", default=[], help="tasks whose accuracy is measured as well")
    parser.add_argument(
        "--judge", nargs="*", default=[], help="list the points at which these objectives are beaten"
    )
    arguments = sys.argv[1:]
    end = arguments.index("--") if "--" in arguments else len(arguments)
    return parser.parse_args(arguments[:end]), arguments[end + 1 :]


def draw(records: Sequence[dict], args: argparse.Namespace) -> None:
    """The figure, a line a point, and where the judged objective is beaten."""
    methods = [
        json.loads(path.read_text())["points"] for path in sorted((args.out / "methods").glob("*.json"))
    ]
    points = pareto.fronts(records, [point for each in methods for point in each])
    save(pareto.draw(points), args.out / "pareto.png")
    print(*map(pareto.line, points), sep="\n")
    for objective in args.judge:
        beaten = pareto.worse_than(points, objective)
        print(*(beaten or [f"{objective} is nowhere beaten beyond the intervals"]), sep="\n")


def measured(folder: Path) -> list[dict]:
    """The records of a folder. Raises UserError for one that an older sweep wrote."""
    records = {path: json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))}
    for path, record in records.items():
        found = record.get("schema_version", "unknown")
        if found != SCHEMA_VERSION:
            raise UserError(f"{path}: schema {found}, not {SCHEMA_VERSION}; delete it to measure again")
    return list(records.values())


def accuracies(records: Sequence[dict]) -> Iterator[str]:
    """A line a point and task: the mean over seeds, and the span of the intervals."""
    groups: dict[tuple[str, ...], list[dict]] = {}
    for record in records:
        setting = record["objective"], f"{record['weight']:g}", record["scope"], record["task"]
        groups.setdefault(setting, []).append(record["tuned"])
    for (objective, weight, scope, task), rows in sorted(groups.items(), key=lambda group: group[0][::-1]):
        intervals = [row["choice_accuracy_ci95"] for row in rows]
        accuracy = mean(row["choice_accuracy"] for row in rows)
        low, high = min(low for low, _ in intervals), max(high for _, high in intervals)
        yield (
            f"{task:<8} {objective:<14} {weight:<6} {scope}, {len(rows)} seeds: accuracy {accuracy:.3f} "
            f"({low:.3f}-{high:.3f})"
        )


def main() -> None:
    args, options = parse()
    points, tasks = args.out / "points", args.out / "tasks"
    for folder in (points, tasks):
        folder.mkdir(parents=True, exist_ok=True)
        measured(folder)
    failed = 0
    for point in points_of(args):
        name = f"{point.name}.json"
        try:
            if not (points / name).exists():
                write(points / name, run_point(point, args.out, options))
            for task in args.tasks:
                path = tasks / f"{task_file(point, task)}.json"
                if not path.exists():
                    write(path, run_task(point, args.out, options, task))
        except UserError as error:
            failed += 1
            print(f"{point.name} failed: {error}", file=sys.stderr)
    records = measured(points)
    for line in accuracies(measured(tasks)):
        print(line)
    if any(record["objective"] == CONTROL for record in records):
        draw(records, args)
    print(f"{len(records)} points, {failed} failed: {args.out / 'pareto.png'}")
    if failed:
        raise UserError(f"{failed} points failed: repeat the command to try them again")


if __name__ == "__main__":
    run_command(main)
