"""`dwellmoe lm-eval` gives the harness's own numbers, and the routing of exactly the tokens that ran."""

import json
import shutil
from functools import partial
from typing import Any

import numpy as np
import pytest

pytest.importorskip("lm_eval")

from lm_eval import simple_evaluate
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager
from transformers import AutoModelForCausalLM, AutoTokenizer

from dwellmoe.cache.trace import DECODE, PREFILL, RoutingTrace
from dwellmoe.cli import lm_eval as command
from dwellmoe.errors import UserError
from dwellmoe.harness import tasks as harness_tasks
from dwellmoe.routing.record import record_rows
from tests.evaluation.workspace import make_adapter
from tests.harness.workspace import make_tasks

pytestmark = pytest.mark.slow


NAMES = "words_choice,words_generate,words_rolling"


OwnTasks = partial(TaskManager, include_defaults=False)
"""Without the harness's thousands of task files, which take seconds to read."""


@pytest.fixture(scope="module", autouse=True)
def own_tasks_alone():
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(harness_tasks, "TaskManager", OwnTasks)
        yield


@pytest.fixture(scope="module")
def tasks(tmp_path_factory):
    return make_tasks(tmp_path_factory.mktemp("harness") / "tasks")


@pytest.fixture(scope="module")
def adapter(tmp_path_factory):
    folder = tmp_path_factory.mktemp("adapter") / "tuned"
    make_adapter(folder, 0)
    return folder


def run(checkpoint, tasks, out, *options, names=NAMES):
    given = ("--model_name", checkpoint, "--include_path", tasks, "--tasks", names, "--output_path", out)
    command.run([str(word) for word in (*given, "--bootstrap_samples", 20, *options)])
    return json.loads((out / "report.json").read_text())


def direct(checkpoint, tasks, name, batch_size=1, **options) -> Any:
    """The same task by the harness alone."""
    model_class: Any = HFLM
    evaluate: Any = simple_evaluate
    model = AutoModelForCausalLM.from_pretrained(checkpoint)
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    return evaluate(
        model_class(pretrained=model, tokenizer=tokenizer, batch_size=batch_size),
        tasks=[name],
        task_manager=OwnTasks(include_path=str(tasks)),
        **options,
    )


def scores(results):
    return {name: value for name, value in results.items() if isinstance(value, float)}


@pytest.fixture(scope="module", params=[1, 3])
def ran(request, tiny_checkpoint, tasks, tmp_path_factory):
    """Batch size, report and folder of a run."""
    out = tmp_path_factory.mktemp("out") / "results"
    report = run(tiny_checkpoint, tasks, out, "--batch_size", request.param, "--log_samples", "True")
    return request.param, report, out


@pytest.mark.parametrize("name", NAMES.split(","))
def test_the_numbers_are_those_of_the_harness(name, ran, tiny_checkpoint, tasks):
    batch_size, report, out = ran
    expected = direct(tiny_checkpoint, tasks, name, batch_size)
    whole = json.loads((out / "results-base.json").read_text())
    assert scores(whole["results"][name]) == scores(expected["results"][name])
    row = next(row for row in report["tasks"] if row["task"] == name)
    assert scores(row["scores"]) == scores(expected["results"][name])
    samples = [json.loads(line) for line in (out / f"samples-base-{name}.jsonl").read_text().splitlines()]
    assert [one["doc_id"] for one in samples] == [one["doc_id"] for one in expected["samples"][name]]
    assert {*whole} >= {"results", "configs", "versions", "n-shot", "n-samples", "config"}


def test_the_number_type_is_that_of_the_checkpoint_as_in_the_harness(tiny_checkpoint, tasks, tmp_path):
    checkpoint = tmp_path / "bfloat16"
    shutil.copytree(tiny_checkpoint, checkpoint)
    AutoModelForCausalLM.from_pretrained(tiny_checkpoint).bfloat16().save_pretrained(checkpoint)
    report = run(checkpoint, tasks, tmp_path / "out", names="words_rolling")
    expected, other = (
        scores(direct(path, tasks, "words_rolling")["results"]["words_rolling"])
        for path in (checkpoint, tiny_checkpoint)
    )
    assert scores(report["tasks"][0]["scores"]) == expected != other


def expected_rows(tokenizer, tasks, batch_size):
    """Token ids of every row of `words_choice` that the harness runs, and how many are context."""
    rows = [json.loads(line) for line in (tasks / "rows.jsonl").read_text().splitlines()]
    found = {}
    for row in rows:
        context = tokenizer(row["question"], add_special_tokens=False)["input_ids"]
        for choice in row["choices"]:
            continuation = tokenizer(choice, add_special_tokens=False)["input_ids"]
            found[tuple([*context, *continuation][:-1])] = len(context)
    return found


def test_exactly_the_tokens_of_a_task_are_recorded(ran, tiny_checkpoint, tasks):
    batch_size, report, out = ran
    tokenizer = AutoTokenizer.from_pretrained(tiny_checkpoint)
    model = AutoModelForCausalLM.from_pretrained(tiny_checkpoint)
    trace = RoutingTrace.load(out / "trace-base-words_choice.safetensors")
    expected = expected_rows(tokenizer, tasks, batch_size)
    found = {}
    for request in np.unique(trace.request):
        mine = trace.request == request
        row = tuple(trace.token_ids[mine].tolist())
        found[row] = int((trace.phase[mine] == PREFILL).sum())
        ours = record_rows(model, tokenizer, [list(row)])
        assert np.array_equal(trace.experts[mine], ours.experts)
    assert found == expected
    (row,) = (row for row in report["tasks"] if row["task"] == "words_choice")
    assert row["rows"] == len(found) and row["prefill_tokens"] + row["decode_tokens"] == trace.steps


def test_what_is_generated_after_a_prompt_is_decode(ran):
    _, report, out = ran
    trace = RoutingTrace.load(out / "trace-base-words_generate.safetensors")
    assert len(np.unique(trace.request)) == 5
    assert all((trace.phase[trace.request == r] == DECODE).sum() <= 5 for r in range(5)), "6 tokens at most"
    rolling = next(row for row in report["tasks"] if row["task"] == "words_rolling")
    assert rolling["prefill_tokens"] == rolling["rows"], "all but the token before the text is scored"


def test_ecr_hits_and_bytes_stand_beside_each_score(ran):
    _, report, out = ran
    for row in report["tasks"]:
        trace = RoutingTrace.load(out / f"trace-base-{row['task']}.safetensors")
        cache = [found for found in row["cache"] if found["tokens"] == "as_decoded"]
        assert {found["policy"] for found in cache} == {"lru", "lfu", "opt"}
        assert all(found["hits"] + found["misses"] == trace.experts.size for found in cache)
        assert all(found["miss_bytes_per_token"] > 0 and found["capacity"] == 2 for found in cache)
        assert any(found["tokens"] == "as_decoded" and 0 <= found["ecr"] <= 1 for found in row["locality"])


def test_own_tasks_stand_beside_those_of_the_harness(tasks, monkeypatch):
    monkeypatch.setattr(harness_tasks, "TaskManager", TaskManager)
    found = harness_tasks.find_tasks(["words_choice"], str(tasks))
    assert {"hellaswag", "words_choice", "words_group"} <= {*found.all_tasks}


def test_a_group_is_the_harness_own_group(tiny_checkpoint, tasks, tmp_path):
    report = run(tiny_checkpoint, tasks, tmp_path / "out", names="words_group")
    expected = direct(tiny_checkpoint, tasks, "words_group")
    by_name = {row["task"]: row for row in report["tasks"]}
    assert scores(by_name["words_group"]["scores"]) == scores(expected["groups"]["words_group"])
    for name in ("words_choice", "words_other"):
        assert scores(by_name[name]["scores"]) == scores(expected["results"][name])
        assert by_name[name]["prefill_tokens"] > 0


def test_tuned_and_rerouted_variants(tiny_checkpoint, tasks, adapter, tmp_path):
    options = ("--lora_save_path", adapter, "--routing_strategy", "margin:loss=0.5", "--expert_budget", "50%")
    report = run(tiny_checkpoint, tasks, tmp_path / "out", *options, names="words_choice,words_generate")
    rows = {(row["task"], row["variant"]): row for row in report["tasks"]}
    assert report["variants"] == ["base", "tuned", "base-rerouted", "tuned-rerouted"]
    plain = direct(tiny_checkpoint, tasks, "words_choice")
    assert scores(rows["words_choice", "base"]["scores"]) == scores(plain["results"]["words_choice"])
    for variant in ("base", "tuned"):
        own, moved = (rows["words_generate", name] for name in (variant, f"{variant}-rerouted"))
        assert own["rerouting"]["agreement"] == 1 > moved["rerouting"]["agreement"]
    assert rows["words_choice", "base"]["scores"] != rows["words_choice", "tuned"]["scores"]


def test_out_of_the_engine_and_in_low_bits(tiny_checkpoint, tasks, tmp_path):
    plain = direct(tiny_checkpoint, tasks, "words_choice")["results"]["words_choice"]
    report = run(tiny_checkpoint, tasks, tmp_path / "a", "--expert_budget", "50%", names="words_choice")
    assert scores(report["tasks"][0]["scores"]) == scores(plain)
    assert report["engine"][0]["prefill"]["tokens"] > 0
    report = run(tiny_checkpoint, tasks, tmp_path / "b", "--expert_format", "int8", names="words_choice")
    assert (
        report["settings"]["expert_format"] == "int8" and 0 <= report["tasks"][0]["scores"]["acc,none"] <= 1
    )


def test_a_stopped_run_goes_on_with_what_it_finished(tiny_checkpoint, tasks, tmp_path, monkeypatch, capsys):
    from dwellmoe.harness import run as module

    whole = run(tiny_checkpoint, tasks, tmp_path / "whole")
    asked = []
    original = module.simple_evaluate

    def stopped(model, tasks, **options):
        if asked:
            raise KeyboardInterrupt
        asked.append(tasks)
        return original(model, tasks=tasks, **options)

    monkeypatch.setattr(module, "simple_evaluate", stopped)
    with pytest.raises(KeyboardInterrupt):
        run(tiny_checkpoint, tasks, tmp_path / "out")
    assert not (tmp_path / "out" / "report.json").exists() and "--resume True" in capsys.readouterr().out
    again = []
    monkeypatch.setattr(
        module,
        "simple_evaluate",
        lambda model, tasks, **o: again.append(tasks) or original(model, tasks=tasks, **o),
    )
    report = run(tiny_checkpoint, tasks, tmp_path / "out", "--resume", "True")
    assert again == [["words_generate"], ["words_rolling"]] and report["tasks"] == whole["tasks"]
    assert not list((tmp_path / "out").glob("unfinished-*"))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--tasks", "words_choic"), "words_choice"),
        (("--tasks", ""), "--tasks"),
        (("--include_path", "nowhere"), "nowhere"),
        (("--model_name", "./nowhere"), "./nowhere"),
        (("--lora_save_path", "nowhere"), "nowhere"),
        (("--routing_strategy", "margni"), "margin"),
        (("--expert_budget", "x"), "x"),
        (("--output_path", "file"), "file"),
        (("--json", "file/such"), "file/such"),
        (("--policies", "lur"), "lru"),
        (("--limit", "0"), "--limit"),
        (("--tasks", "needs_hub"), "needs_hub"),
        (("--tasks", "no_file"), "no_file"),
        (("--tasks", "no_yaml"), "no_yaml"),
    ],
)
def test_a_mistake_is_one_line_before_a_model_is_loaded(
    options, said, tiny_checkpoint, tasks, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("")
    own = make_tasks(tmp_path / "own")
    hub = (own / "words_choice.yaml").read_text().replace("words_choice", "needs_hub")
    (own / "needs_hub.yaml").write_text(hub.replace("dataset_path: json", "dataset_path: missing/nothing"))
    missing = (own / "words_choice.yaml").read_text().replace("words_choice", "no_file")
    (own / "no_file.yaml").write_text(missing.replace("rows.jsonl", "none.jsonl"))
    from dwellmoe.harness import run as module

    monkeypatch.setattr(module, "load_with_adapters", lambda *_, **__: pytest.fail("the model was loaded"))
    given = {"--model_name": tiny_checkpoint, "--include_path": own, "--tasks": "words_choice"}
    given = {**given, "--output_path": "out", options[0]: options[1]}
    with pytest.raises(UserError) as error:
        command.run([str(word) for pair in given.items() for word in pair])
    assert said in str(error.value) and "\n" not in str(error.value)
