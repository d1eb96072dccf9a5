"""A user's own file needs no code, and a mistake in it is reported with file, line and key."""

import json

import pyarrow
import pyarrow.parquet
import pytest

from dwellmoe.data.examples import load_examples
from dwellmoe.data.task import load_task, task_names
from dwellmoe.errors import UserError
from tests.data.stand_ins import TASK, write_task

CHOICE_TASK = """
prompt = "{question}\\n{options}"
answer = " {letter}"
fields = ["question", "choices", "gold"]
form = "option_letter"
metric = "accuracy"
[[source]]
kind = "file"
files = { train = "a.NAME" }
"""
ROWS = [{"question": f"w{n}?", "choices": ["yes", "no", "maybe"], "gold": n % 3} for n in range(4)]


def write_rows(path, rows):
    if path.suffix == ".jsonl":
        path.write_text("\n".join(map(json.dumps, rows)))
    elif path.suffix == ".json":
        path.write_text(json.dumps(rows, indent=1))
    elif path.suffix == ".csv":
        cells = [
            [row["question"], json.dumps(row["choices"]).replace('"', '""'), row["gold"]] for row in rows
        ]
        path.write_text("question,choices,gold\n" + "".join('{},"{}",{}\n'.format(*row) for row in cells))
    else:
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)


@pytest.mark.parametrize("ending", ["jsonl", "json", "csv", "parquet"])
def test_every_format_gives_the_same_examples(ending, tmp_path):
    write_rows(tmp_path / f"a.{ending}", ROWS)
    task = load_task(str(write_task(tmp_path, CHOICE_TASK.replace("NAME", ending))))
    examples = load_examples(task, "train")
    assert [example.answer for example in examples] == [" A", " B", " C", " A"]
    assert examples[1].prompt == "w1?\nA. yes\nB. no\nC. maybe"
    assert examples[0].task == task.name


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        (
            "a.jsonl",
            '{"question": "w", "reply": "w"}\n{"question": "w"}\n',
            r"a\.jsonl:2: key 'reply' is missing",
        ),
        ("a.jsonl", '{"question": "w", "reply": "w"}\n{"quest', r"a\.jsonl:2: broken JSON: .* \(column 2\)"),
        ("a.jsonl", '{"question": "w"\n{"quest', r"a\.jsonl:1: broken JSON: .* \(column 17\)"),
        ("a.jsonl", "[1]\n", r"a\.jsonl:1: expected a record with named fields, found list"),
        (
            "a.jsonl",
            '{"question": ["w"], "reply": "w"}',
            r"a\.jsonl:1: 'question' must be a text, found list",
        ),
        (
            "a.jsonl",
            '{"question": "w", "reply": null}',
            r"a\.jsonl:1: 'reply' must be a text, found NoneType",
        ),
        ("a.jsonl", '{"question": "w", "reply": " "}', r"a\.jsonl:1: the answer is empty"),
        ("a.json", '[{"question": "w"}]', r"a\.json, record 1: key 'reply' is missing"),
        ("a.json", '[\n{"question": "w",}]', r"a\.json:2: broken JSON"),
        ("a.json", '{"question": "w"}', r"a\.json: expected a list of records, found dict"),
        ("a.csv", "question,reply\nw,w\nw\n", r"a\.csv:3, record 2: key 'reply' is missing"),
        ("a.csv", "question,reply\nw,w,w\n", r"a\.csv:2, record 1: more cells than"),
        ("a.csv", 'question,reply\nw,"w\n', r"a\.csv: cannot be read as text"),
        ("a.parquet", "no parquet", r"a\.parquet: not a Parquet file"),
        (
            "a.txt",
            "w",
            r"unknown ending of '.*a\.txt' '\.txt': choose from \.csv, \.json, \.jsonl, \.parquet",
        ),
        ("a.jsonl", b"\xff\xfe", r"a\.jsonl: cannot be read as text"),
    ],
)
def test_a_bad_file_is_reported_with_its_place(file, content, message, tmp_path):
    (tmp_path / file).write_bytes(content if isinstance(content, bytes) else content.encode())
    task = load_task(str(write_task(tmp_path, TASK.replace("a.jsonl", file))))
    with pytest.raises(UserError, match=message):
        load_examples(task, "train")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"gold": 3}, "'gold' must lie in 0..2, found 3"),
        ({"gold": "B"}, "'gold' must be the position of the right choice, counted from 0, found 'B'"),
        ({"gold": True}, "'gold' must be"),
        ({"choices": "yes, no"}, "'choices' must be a list of 1 to 10 texts, found 'yes, no'"),
        ({"choices": []}, "'choices' must be a list"),
    ],
)
def test_bad_choices_are_reported(change, message, tmp_path):
    write_rows(tmp_path / "a.jsonl", [ROWS[0], ROWS[1] | change])
    task = load_task(str(write_task(tmp_path, CHOICE_TASK.replace("NAME", "jsonl"))))
    with pytest.raises(UserError, match=rf"a\.jsonl:2: {message}"):
        load_examples(task, "train")


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(UserError, match=r"no data file at '.*a\.jsonl'"):
        load_examples(load_task(str(write_task(tmp_path))), "train")


def test_a_template_cannot_reach_into_objects(tmp_path):
    text = TASK.replace("{question}", "{question.__class__} {question}")
    task = load_task(str(write_task(tmp_path, text, a=[{"question": "{reply}", "reply": "w"}])))
    assert load_examples(task, "train")[0].prompt == "{question.__class__} {reply}"


def test_what_an_earlier_split_has_is_left_out_of_the_later(tmp_path, capsys):
    rows = [{"question": f"w{n}", "reply": "w"} for n in range(5)]
    task = load_task(str(write_task(tmp_path, a=rows[:3], b=rows[2:4], c=[rows[0], rows[3], rows[4]])))
    asked = {
        split: [e.prompt for e in load_examples(task, split)] for split in ("train", "validation", "test")
    }
    assert asked == {"train": ["w0", "w1", "w2"], "validation": ["w3"], "test": ["w4"]}
    assert "2 of test left out" in capsys.readouterr().err


def test_a_file_beside_the_task_file_comes_first(tmp_path):
    path = write_task(tmp_path, a=[{"question": "w1", "reply": "w"}])
    (tmp_path / "train.csv").write_text("question,reply\nw2,w\n")
    assert load_examples(load_task(str(path)), "train")[0].prompt == "w2"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('prompt = ""', "key 'answer' is missing"),
        ("prompt = [", "not a TOML file"),
        (TASK.replace("free_text", "essay"), "form = 'essay': choose from true_false"),
        (TASK.replace("rouge", "bleu"), "metric = 'bleu': choose from accuracy"),
        (TASK.replace('"file"', '"ftp"'), "source.kind = 'ftp': choose from package, hub, file"),
        (TASK.replace("prompt =", "promt ="), "unknown key 'promt': choose from"),
        (TASK.replace('"{question}"', "7"), "'prompt' must be a text, found int"),
        (TASK.replace("files = {", "hub_path = 3\nfiles = {"), "'source.hub_path' must be a text, found int"),
        (TASK + '[source.splits]\nvalidation = "a[5"', "split 'a\\[5' is not of the form"),
        ("mix = { nope = 1 }", "unknown data set 'nope'"),
        ("mix = { boolq = 0 }", "weight of 'boolq' must be a number above 0, found 0"),
    ],
)
def test_a_bad_task_file_is_reported(text, message, tmp_path):
    with pytest.raises(UserError, match=message):
        load_task(str(write_task(tmp_path, text)))


def test_unknown_names_are_reported_with_the_choices(tmp_path, own_task):
    with pytest.raises(UserError, match=f"unknown data set 'nope': choose from {task_names()[0]}"):
        load_task("nope")
    with pytest.raises(UserError, match=r"no task file at '.*nope\.toml'"):
        load_task(str(tmp_path / "nope.toml"))
    with pytest.raises(UserError, match="unknown split 'dev': choose from test, train, validation"):
        load_examples(load_task(str(own_task)), "dev")
