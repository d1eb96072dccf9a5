"""Benchmarks end to end on a tiny model and stand-in data: slices, stop words, programs, single answers."""

import dataclasses
import json

import numpy as np
import pytest
import torch

from dwellmoe.cache.trace import RoutingTrace
from dwellmoe.data.examples import Example
from dwellmoe.data.task import Task, load_task, worded
from dwellmoe.errors import UserError
from dwellmoe.evaluation.answers.judge import program_of
from dwellmoe.evaluation.generation import StopWords, Timing, before_stop, generate
from dwellmoe.evaluation.metrics import load_metric
from dwellmoe.evaluation.ranks import Ranks
from dwellmoe.evaluation.report.speed import measured_speed_row
from dwellmoe.evaluation.requests import ALL, SampleSpec, load_requests, sample_spec_of
from dwellmoe.evaluation.settings import EvaluationSettings
from inference import answer_one, evaluate, parse
from tests.data.stand_ins import word_tokenizer, words, write_task
from tests.evaluation.workspace import make_workspace, options

pytestmark = pytest.mark.slow

CODE_TASK = """
benchmark = true
undisclosed = {undisclosed}
prompt = "w1 {question}"
answer = " {reply}"
fields = ["question", "reply"]
form = "code"
metric = "pass_at_1"
program = "{code}\\nassert {question} == 3"
stop = ["w7 w8"]
answer_tokens = 5
[[source]]
kind = "file"
files = { test = "c.jsonl" }
"""
STUB = 'def add(a, b):\n    """Sum."""\n'
HUMANEVAL = Task("t", None, (), program="{stub}{code}\n{tests}\n")  # type: ignore[arg-type]
TESTS = "assert add(1, 2) == 3"


@pytest.fixture(scope="module")
def tasks(tmp_path_factory):
    folder = make_workspace(tmp_path_factory.mktemp("benchmark"))
    for name, undisclosed in (("code", "false"), ("secret", "true")):
        (folder / name).mkdir()
        rows = [{"question": f"w{30 + n}", "reply": words(n, 3)} for n in range(5)]
        write_task(folder / name, CODE_TASK.replace("{undisclosed}", undisclosed), c=rows)
    return folder


def alone(tasks, task="code", **changes):
    given = options(tasks, **{"dataset_name": tasks / task / "task.toml"} | changes)
    for name in ("--generate_limit", "--control_path", "--lora_save_path", "--max_new_tokens"):
        index = given.index(name)
        del given[index : index + 2]
    return [*given, "--use_lora", "False"]


def test_a_benchmark_is_measured_whole_and_its_texts_are_kept(tasks, capsys):
    """One run for both, as a run takes its time: five programs judged, nothing undisclosed written."""
    folder = tasks / "results"
    evaluate(parse(alone(tasks, task="secret")), Ranks())
    report, shown = json.loads((folder / "report.json").read_text()), capsys.readouterr().out
    row, speed = report["quality"][0], report["measured_speed"][0]
    assert (report["data"]["requests"], row["answered_requests"]) == (5, 5)
    assert row["pass_at_1"] == 0 and sum(row["verdicts"].values()) == 5
    assert "at most 5 tokens" in shown and "pass_at_1 0.0000" in shown and not report["data"]["chat_template"]
    assert (report["data"]["row_tokens"], report["data"]["new_tokens"]) == (64, 5)
    assert speed["prefill_tokens_per_second"] > 0 and speed["decode_tokens_per_second"] > 0 and speed["warm"]
    assert RoutingTrace.load(folder / "trace-base-generated.safetensors").token_ids is None
    for path in ("samples.csv", "report.html"):
        assert "w30" not in (folder / path).read_text()


def test_an_undisclosed_answer_is_not_printed(tasks, capsys):
    path = tasks / "undisclosed.json"
    answer_one(parse([*alone(tasks, task="secret"), "--task_num", "0", "--json", str(path)]))
    found = json.loads(path.read_text())
    assert found["answer"] is None and "(not shown)" in capsys.readouterr().out


def test_one_request_and_a_prompt_of_the_user(tasks, capsys):
    path = tasks / "one.json"
    answer_one(parse([*alone(tasks), "--task_num", "3", "--json", str(path)]))
    numbered = json.loads(path.read_text())
    assert numbered["prompt_tokens"] == 2 and 1 <= numbered["answer_tokens"] <= 5
    assert numbered["verdict"].split()[0] == "failed"
    assert [row["policy"] for row in numbered["cache"]] == ["lru", "lfu", "opt", "lopt:horizon=2"]
    assert all(row["miss_bytes_per_token"] > 0 for row in numbered["cache"])
    shown = capsys.readouterr().out
    assert "tokens/s" in shown and "hit rate" in shown and "verdict: failed" in shown
    answer_one(parse([*alone(tasks), "--input", "w33", "--json", str(path)]))
    prompted = json.loads(path.read_text())
    assert prompted["prompt_tokens"] == 2 and prompted["answer"].startswith(numbered["answer"].split()[0])


def test_a_prompt_that_is_cut_says_so(tasks, capsys):
    path = tasks / "cut.json"
    given = alone(tasks, max_words_len=8)
    index = given.index("--dataset_name")
    del given[index : index + 2]
    answer_one(parse([*given, "--input", "w1 w2 w3 w4 w5 w6 w7 w8 w9 w10 w11", "--json", str(path)]))
    found = json.loads(path.read_text())
    assert (found["prompt_tokens"], found["cut_prompt_tokens"]) == (8, 3)
    assert "lost its first 3 tokens (--max_words_len)" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (["--task_num", "9"], "--task_num 9: the last request is number 4"),
        (["--input", " "], "--input: the prompt is empty"),
        (["--input", "a", "--use_chat_template", "on"], "no chat template; choose from auto, off"),
        (["--task_num", "1", "--input", "a"], "--task_num .* leave out --input"),
        (["--input", "a", "--limit", "2"], "--input .* leave out --limit"),
        (["--limit", "0"], "--limit 0: must be at least 1"),
        (["--use_chat_template", "maybe"], "choose from auto, on, off"),
        (["--input", "w1", "--max_new_tokens", "9999"], "context of .* --allow_beyond_context"),
    ],
)
def test_mistakes_are_named(tasks, change, message):
    with pytest.raises(UserError, match=message):
        answer_one(parse([*alone(tasks), *change]))


def test_what_is_measured():
    settings = EvaluationSettings()
    plain = Task("t", None, ())  # type: ignore[arg-type]
    benchmark = dataclasses.replace(plain, benchmark=True, answer_tokens=99)
    assert sample_spec_of(settings, plain, 64) == SampleSpec(256, 24, 48, 64)
    assert sample_spec_of(settings, benchmark, 64) == SampleSpec(0, ALL, 99, 64, 0)
    some = EvaluationSettings(limit=2, limit_start=3, max_new_tokens=7)
    assert sample_spec_of(some, plain, 64) == SampleSpec(2, ALL, 7, 64, 3)
    assert sample_spec_of(some, plain, 64).choose(range(10), 0) == [3, 4]
    assert sample_spec_of(EvaluationSettings(limit_start=8), benchmark, 64).choose(range(10), 0) == [8, 9]
    sample = sample_spec_of(EvaluationSettings(limit_evaluation=4), benchmark, 64)
    assert len(sample.choose(range(10), 0)) == 4
    with pytest.raises(UserError, match="give one"):
        sample_spec_of(EvaluationSettings(limit=2, limit_evaluation=3), plain, 64)


def test_an_answer_ends_before_its_stop_word(evaluated, requests):
    prompts = [request.prompt_ids for request in requests[:3]]
    free = generate(evaluated, [0, 1, 2], prompts, 8).answers
    word = evaluated.tokenizer.decode(free[1].token_ids[2])
    stopped, recording, timing = generate(evaluated, [0, 1, 2], prompts, 8, [word])
    assert stopped[1].text == before_stop(free[1].text, [word]) and len(stopped[1].token_ids) <= 3
    for number, answer in enumerate(stopped):
        assert answer.token_ids == free[number].token_ids[: len(answer.token_ids)] and word not in answer.text
        ran = recording.trace.phase[recording.trace.request == number].sum()
        assert ran == max(0, len(answer.token_ids) - 1) or len(answer.token_ids) == 8
    assert timing.rows == 3 and timing.prefill_tokens == sum(map(len, prompts))


def test_a_row_that_has_stopped_stays_stopped():
    tokenizer = word_tokenizer()
    words_of = StopWords(tokenizer, ["w5 w6"], prompt_tokens=1, rows=2)
    ids = [[9, 9], [8, 9]]  # w5 is token 9, w6 is token 10
    ended = [words_of(torch.tensor([row + tail for row, tail in zip([[4], [4]], ids, strict=True)]), None)]  # type: ignore[arg-type]
    assert ended[0].tolist() == [False, False]
    ids = torch.tensor([[4, 9, 10], [4, 8, 9]])
    assert words_of(ids, None).tolist() == [True, False]  # type: ignore[arg-type]
    ids = torch.tensor([[4, 9, 10, 2], [4, 8, 9, 10]])
    assert words_of(ids, None).tolist() == [True, True]  # type: ignore[arg-type]
    assert np.array_equal(words_of.lengths, [2, 3])


@pytest.mark.parametrize(
    "written",
    [
        "    return a + b\n",
        "```python\ndef add(a, b):\n    return a + b\n```",
        "So:\n```py\nimport math\n\ndef add(a, b):\n    return math.fsum([a, b])\n```\nand\n```\nadd(1)\n```",
        "```\n    return a + b\n```",
        "```python\ndef add(a, b):\n    return a + b\n",
    ],
)
def test_the_answer_is_found_and_judged(written):
    example = Example("", "", {"stub": STUB, "tests": TESTS})
    metric = load_metric("pass_at_1")
    found = metric.compute(predictions=[program_of(HUMANEVAL, example, written)])
    assert found["pass_at_1"] == 1.0 and found["verdicts"] == {"passed": 1}


def test_pass_at_1_is_a_share():
    programs = ["pass", "assert False", "import sys; sys.exit(0)", "x = 1"]
    found = load_metric("pass_at_1").compute(predictions=programs)
    assert found["pass_at_1"] == 0.5 and found["verdicts"] == {"passed": 2, "failed": 2} and found["sandbox"]


def test_a_chat_is_scored_and_continued_in_its_own_words(tasks):
    task = worded(load_task(str(tasks / "code" / "task.toml")), chat=True)
    tokenizer = word_tokenizer_with("{% for m in messages %}w90 {{ m['content'] }} w91{% endfor %}")
    request = load_requests(task, "test", tokenizer, SampleSpec(1, 1, 5, 64, 2), 0)[0]
    assert tokenizer.decode(request.prompt_ids) == "w90 w1 w32 w91"
    assert tokenizer.decode(request.row["input_ids"]) == "w90 w1 w32 w91 w2 w3 w4 <eos>"


def test_a_long_reference_does_not_shorten_the_question(tasks):
    task, tokenizer = load_task(str(tasks / "code" / "task.toml")), word_tokenizer()
    request = load_requests(task, "test", tokenizer, SampleSpec(1, 1, 5, 3, 0), 0)[0]
    assert request.row["prompt_tokens"] == 0 and tokenizer.decode(request.prompt_ids) == "w1 w30"


def word_tokenizer_with(template):
    tokenizer = word_tokenizer()
    tokenizer.chat_template = template
    return tokenizer


def test_speed_leaves_the_first_batch_out():
    timings = [Timing(10, 5.0, 10, 5.0, 2), Timing(10, 1.0, 8, 2.0, 2)]
    row = measured_speed_row("base", timings)
    assert (row.prefill_tokens_per_second, row.decode_tokens_per_second) == (10.0, 4.0)
    assert not measured_speed_row("base", timings[:1]).warm
    assert measured_speed_row("base", []).decode_tokens_per_second is None
