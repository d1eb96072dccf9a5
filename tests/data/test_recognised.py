"""A data file without a task file is recognised by its fields; what is ignored or faulty is counted."""

import csv
import json

import pyarrow
import pyarrow.parquet
import pytest

from dwellmoe.data.examples import load_examples
from dwellmoe.data.splits import SPLITS
from dwellmoe.data.task import load_task
from dwellmoe.errors import UserError
from tests.data.chats import turns, write_chats

TALK = turns("w1", "w2", "w3", "w4")
GOOD = [turns(f"q{n}", f"a{n}") for n in range(9)]
SHAREGPT = [{"from": "human", "value": "w1"}, {"from": "gpt", "value": "w2"}]
ASKED = "User: w1\nAssistant: w2\nUser: w3\nAssistant:"
LAYOUTS = {
    "messages": ({"messages": TALK, "id": 7}, ASKED, "w4"),
    "conversations": ({"conversations": SHAREGPT}, "User: w1\nAssistant:", "w2"),
    "roles_in_conversations": ({"conversations": TALK[:2]}, "User: w1\nAssistant:", "w2"),
    "texts": ({"prompt": "w1", "completion": " w2"}, "w1", " w2"),
    "turns": (
        {"prompt": TALK[:3], "completion": TALK[3:]},
        ASKED,
        "w4",
    ),
    "input": ({"instruction": "w1", "input": "w2", "output": "w3"}, "User: w1\n\nw2\nAssistant:", "w3"),
    "no_input": ({"instruction": "w1", "input": "", "output": "w3"}, "User: w1\nAssistant:", "w3"),
    "instruction": ({"instruction": "w1", "output": "w3"}, "User: w1\nAssistant:", "w3"),
    "text": ({"text": "w1 w2"}, "", "w1 w2"),
}


def write_rows(path, rows):
    if path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    elif path.suffix == ".json":
        path.write_text(json.dumps(rows))
    elif path.suffix == ".parquet":
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    else:
        with open(path, "w", newline="") as file:
            writer = csv.DictWriter(file, [*rows[0]])
            writer.writeheader()
            cells = [{k: v if isinstance(v, str) else json.dumps(v) for k, v in row.items()} for row in rows]
            writer.writerows(cells)
    return str(path)


def sizes(path, **options):
    """How many examples each split has."""
    return [len(load_examples(load_task(path, **options), split)) for split in SPLITS]


@pytest.mark.parametrize("ending", ["jsonl", "json", "csv", "parquet"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_in_every_format(layout, ending, tmp_path, capsys):
    record, prompt, answer = LAYOUTS[layout]
    path = write_rows(tmp_path / f"test.{ending}", [record])
    (example,) = load_examples(load_task(path), "test")
    assert (example.prompt, example.answer.removeprefix(" " if example.chat else "")) == (prompt, answer)
    assert "recognised as" in capsys.readouterr().err


def test_what_is_ignored_left_out_and_renamed_is_counted(tmp_path, capsys):
    talk = [
        {"role": "system", "content": ""},
        {"role": "Human", "content": [{"type": "text", "text": "w"}, {"type": "text", "text": "1"}]},
        {"role": "assistant", "content": "w2", "weight": 0, "tool_calls": None},
        {"role": "tool", "content": "unanswered"},
    ]
    path = write_rows(tmp_path / "test.jsonl", [{"messages": talk, "id": 3}])
    (example,) = load_examples(load_task(path), "test")
    assert example.fields["messages"] == turns("w1", "w2")
    first, *_, last = capsys.readouterr().err.splitlines()
    for what in (
        "'id'",
        "'weight'",
        "Human is read as user",
        "empty system",
        "in parts",
        "after the last answer",
    ):
        assert what in first and what in last
    assert "tool_calls" not in last


def message(role, content):
    return {"role": role, "content": content}


@pytest.mark.parametrize(
    ("record", "fault"),
    [
        ({"messages": [message("narrator", "w"), *TALK]}, "turn 1: unknown role 'narrator'"),
        ({"messages": [message(None, "w"), *TALK]}, "turn 1 must have role and content"),
        ({"messages": TALK[:1]}, "no turn of the assistant among 1"),
        ({"messages": TALK[1:]}, "turn 1: the assistant answers before"),
        ({"messages": [message("system", "w"), *TALK[1:]]}, "turn 2: the assistant answers before"),
        ({"messages": [*TALK[:2], message("user", " \n"), TALK[3]]}, r"turn 3 \(user\) is empty"),
        ({"messages": [*TALK[:3], message("assistant", None)]}, r"turn 4 \(assistant\) is empty"),
        ({"messages": [TALK[0], {"role": "assistant", "tool_calls": [1]}]}, "turn 2 .* tool calls"),
        ({"messages": [message("user", [{"type": "image_url"}]), TALK[1]]}, "turn 1 .* 'image_url'"),
        ({"messages": [message("user", 3), TALK[1]]}, r"turn 1 \(user\) must hold a text, found 3"),
        ({"messages": ["w1", "w2"]}, "turn 1 must have role and content"),
        ({"messages": None}, "must be a list of turns, found None"),
        ({"messages": []}, "must be a list of turns"),
        ({"messages": [message("user", "\ud800"), TALK[1]]}, "lone surrogate"),
        ({"conversations": SHAREGPT}, "holds conversations, the first of its file messages"),
        ({"messages": TALK, "text": "w"}, "fits messages as well as text"),
        ({"id": 1}, "no known layout"),
    ],
)  # fmt: skip
def test_a_faulty_record_is_named_and_counted_or_left_out(record, fault, tmp_path, capsys):
    rows = [*({"messages": chat} for chat in GOOD), record, record]
    path = write_rows(tmp_path / "talk.jsonl", rows)
    with pytest.raises(UserError, match=rf"talk\.jsonl:10: .*{fault}.*2 of 11 records.*--skip_faulty"):
        load_examples(load_task(path), "train")
    assert sum(sizes(path, skip_faulty=True)) == 9
    assert "2 of 11 records" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "content", "fault"),
    [
        ("a.jsonl", json.dumps([{"messages": TALK}]), r"a\.jsonl:1: .*\.json, not \.jsonl"),
        ("a.jsonl", json.dumps([{"messages": TALK}], indent=1), r"a\.jsonl:1: .*\.json, not \.jsonl"),
        ("a.json", '{"text": "w"}\n{"text": "w"}', r"a\.json:2: .*\.jsonl, not \.json"),
        ("a.jsonl", "", "holds no record"),
        ("a.jsonl", '{"messages": [], "text": "w"}', r"a\.jsonl:1: .* fits messages as well as text"),
        ("a.jsonl", '{"question": "w"}', r"a\.jsonl:1: .* no known layout, which are messages"),
        ("a.jsonl", '{"prompt": "w", "completion": " "}', r"a\.jsonl:1: 'completion' is empty"),
        ("a.jsonl", '{"instruction": "w", "output": 3}', r"a\.jsonl:1: 'output' must be a text, found 3"),
        ("a.csv", "prompt,answer\nw,w\n", "no known layout"),
    ],
)
def test_a_file_that_is_none_is_refused(name, content, fault, tmp_path):
    (tmp_path / name).write_text(content)
    with pytest.raises(UserError, match=fault):
        load_examples(load_task(str(tmp_path / name)), "train")
    with pytest.raises(UserError, match="no data file"):
        load_task(str(tmp_path / "missing.jsonl"))


def test_a_file_whose_records_are_all_faulty_is_refused_anyway(tmp_path):
    path = write_chats(tmp_path, TALK[:1])
    with pytest.raises(UserError, match="no record is left"):
        load_examples(load_task(path, skip_faulty=True), "train")


def test_blank_texts_are_left_out(tmp_path, capsys):
    path = write_rows(tmp_path / "test.jsonl", [{"text": text} for text in ("w1", "", "w2", None)])
    assert [example.answer for example in load_examples(load_task(path), "test")] == ["w1", "w2"]
    assert "without text" in capsys.readouterr().err


def test_a_file_is_split_by_itself_whatever_lies_beside_it(tmp_path):
    path = write_chats(tmp_path, *(turns(f"q{n}", f"a{n}") for n in range(20)))
    write_chats(tmp_path, TALK, name="test.jsonl")
    assert sizes(path) == [16, 2, 2]


def test_a_file_called_after_a_split_is_that_split(tmp_path):
    path = write_chats(tmp_path, *GOOD, name="train.jsonl")
    write_chats(tmp_path, TALK, name="validation.jsonl")
    assert [len(load_examples(load_task(path), split)) for split in SPLITS[:2]] == [9, 1]
    with pytest.raises(UserError, match="test"):
        load_examples(load_task(path), "test")
