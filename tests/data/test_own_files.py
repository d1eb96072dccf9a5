"""A user's own file needs no code, and a mistake in it is reported with file, line and key."""

import itertools
import json

import pyarrow
import pyarrow.parquet
import pytest

from dwellmoe.data.examples import load_examples
from dwellmoe.data.splits import SPLITS
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
splits = { train = "train" }
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
        ("a.parquet", "no parquet", r"a\.parquet: cannot be read as Parquet"),
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


def test_what_an_earlier_split_has_is_left_out_of_the_later(tmp_path, capsys):
    rows = [{"question": f"w{n}", "reply": "w"} for n in range(5)]
    task = load_task(str(write_task(tmp_path, a=rows[:3], b=rows[2:4], c=[rows[0], rows[3], rows[4]])))
    asked = {
        split: [e.prompt for e in load_examples(task, split)] for split in ("train", "validation", "test")
    }
    assert asked == {"train": ["w0", "w1", "w2"], "validation": ["w3"], "test": ["w4"]}
    assert "2 of test left out" in capsys.readouterr().err


def read(path, split="train"):
    return [example.prompt for example in load_examples(load_task(str(path)), split)]


def test_the_named_file_is_read_whatever_lies_beside(tmp_path, capsys):
    path = write_task(tmp_path, a=[{"question": "w1", "reply": "w"}])
    (tmp_path / "train.csv").write_text("question,reply\nw2,w\n")
    assert read(path) == ["w1"]
    assert "train.csv beside the task file is not read, but a.jsonl" in capsys.readouterr().err
    (tmp_path / "a.jsonl").unlink()
    with pytest.raises(UserError, match=r"no data file at '.*a\.jsonl'"):
        read(path)


NAMED_TRAIN = TASK.replace("a.jsonl", "train.jsonl")


@pytest.mark.parametrize(
    ("rules", "prompts"),
    [
        ('map = { question = { from = "question", remove = "!" }, reply = "reply" }', ["w0", "w1", "w0"]),
        ('splits = { train = "train[:1]" }', ["w0!"]),
        ("below = { stars = 2 }", ["w0!", "w1!"]),
        ('unique_by = "question"', ["w0!", "w1!"]),
    ],
)
def test_the_rules_of_a_source_hold_for_a_file_called_after_a_split(rules, prompts, tmp_path):
    rows = [{"question": f"w{n % 2}!", "reply": f"w{n}", "stars": n} for n in range(3)]
    path = write_task(tmp_path, f"{NAMED_TRAIN}{rules}\n", train=rows)
    assert read(path) == prompts


SOURCELESS = TASK[: TASK.index("[[source]]")]


def test_files_called_after_splits_are_read_where_nothing_is_named(tmp_path, capsys):
    files = {name: [{"question": f"{name} w{n}", "reply": "w"} for n in range(4)] for name in SPLITS}
    path = write_task(tmp_path, SOURCELESS, **files)
    (tmp_path / "train.csv").write_text("question,reply\nw2,w\n")
    assert {split: len(read(path, split)) for split in SPLITS} == dict.fromkeys(SPLITS, 4)
    told = capsys.readouterr().err
    assert "test is read from test.jsonl beside the task file" in told
    assert "train.csv beside the task file is not read" in told


@pytest.mark.parametrize("named", [True, False])
def test_one_file_is_split_by_itself(named, tmp_path, capsys):
    rows = [{"question": f"w{n}", "reply": "w"} for n in range(20)]
    name = "mine" if named else "train"
    files = f'[[source]]\nkind = "file"\nfiles = {{ train = "{name}.jsonl" }}\n' if named else ""
    path = write_task(tmp_path, SOURCELESS + files, **{name: rows})
    parts = {split: read(path, split) for split in SPLITS}
    assert {split: len(part) for split, part in parts.items()} == {"train": 16, "validation": 2, "test": 2}
    assert sorted(itertools.chain(*parts.values())) == sorted(row["question"] for row in rows)
    assert parts["train"] != sorted(parts["train"]) and parts["train"] == read(path)
    assert capsys.readouterr().err.count(f"{name}.jsonl is shuffled (seed 0) and cut into 80 % train") == 1


def test_a_fault_in_any_part_of_a_file_shows_in_every_split(tmp_path):
    rows = [{"question": f"w{n}", "reply": "w"} for n in range(20)]
    for faulty in (0, 7, 19):
        records = [row if n != faulty else {"question": "w"} for n, row in enumerate(rows)]
        path = write_task(tmp_path, SOURCELESS, train=records)
        for split in SPLITS:
            with pytest.raises(UserError, match=f"train.jsonl:{faulty + 1}.*reply"):
                read(path, split)


def test_a_single_file_of_held_out_data_stays_whole(tmp_path):
    text = TASK.replace('train = "a.jsonl", validation = "b.jsonl", ', "")
    path = write_task(tmp_path, text, c=[{"question": f"w{n}", "reply": "w"} for n in range(20)])
    assert len(read(path, "test")) == 20
    with pytest.raises(UserError, match="no source offers this split"):
        read(path)


def test_a_file_serves_where_the_named_hub_is_out_of_reach(tmp_path, monkeypatch, capsys):
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setattr("dwellmoe.data.remote.hub_answers", lambda: False)
    hub = '[[source]]\nkind = "hub"\nhub_path = "a/b"\nfiles = { train = "train" }\n'
    path = write_task(tmp_path, SOURCELESS + hub, train=[{"question": "w1", "reply": "w"}])
    assert read(path) == ["w1"]
    assert "train.jsonl beside the task file, as nothing that it names is in reach" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('prompt = ""', "key 'answer' is missing"),
        ("prompt = [", "not a TOML file"),
        (TASK.replace("free_text", "essay"), "unknown form 'essay': choose from boxed"),
        (TASK.replace("rouge", "bleu"), "unknown metric 'bleu': choose from accuracy"),
        (TASK.replace('"file"', '"ftp"'), "unknown source\\[1\\].kind 'ftp': choose from file, hub, package"),
        (TASK.replace("prompt =", "promt ="), "unknown key 'promt': did you mean 'prompt'"),
        (TASK.replace('"{question}"', "7"), "'prompt' must be a text, found a whole number: 7"),
        (
            TASK.replace("files = {", "hub_path = 3\nfiles = {"),
            "'source\\[1\\].hub_path' must be a text that is not blank, found a whole number: 3",
        ),
        (TASK + '[source.splits]\nvalidation = "a[:150%]"', "a\\[:150%\\]"),
        (TASK + '[source.splits]\nvalidation = "a[5"', "split 'a\\[5' is not of the form"),
        ("mix = { nope = 1 }", "unknown data set 'nope'"),
        ("mix = { boolq = 0 }", "'mix.boolq' must be a number above 0, found a whole number: 0"),
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


@pytest.mark.parametrize(
    ("held_out", "content"),
    [
        ("b.jsonl", "\ufeff\n \n"),
        ("b.json", "[]"),
        ("b.csv", ""),
        ("b.csv", "question,choices,gold\n"),
        ("a.jsonl", None),
    ],
)
def test_a_split_without_a_record_of_its_own_is_refused(held_out, content, tmp_path):
    write_rows(tmp_path / "a.jsonl", ROWS)
    if content is not None:
        (tmp_path / held_out).write_text(content)
    text = CHOICE_TASK.replace('"a.NAME" }', f'"a.jsonl", test = "{held_out}" }}').replace("splits =", "#")
    task = load_task(str(write_task(tmp_path, text)))
    with pytest.raises(UserError, match="'test' is empty") as error:
        load_examples(task, "test")
    assert (held_out in str(error.value)) != (content is None)


def test_a_part_of_a_file_is_taken_once(tmp_path):
    text = CHOICE_TASK.replace("NAME", "jsonl").replace('= "train" }', '= "train[:9] + train[:9]" }')
    with pytest.raises(UserError, match=r"splits\.train' takes 'train\[:9\]' twice"):
        load_task(str(write_task(tmp_path, text)))
