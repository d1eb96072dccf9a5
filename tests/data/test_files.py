"""What a user's file holds is read as it stands there, or refused in one line with its place."""

import json
from datetime import date

import pyarrow
import pyarrow.parquet
import pytest

from dwellmoe.data.examples import load_examples
from dwellmoe.data.task import load_task
from dwellmoe.errors import UserError
from tests.data.stand_ins import TASK, write_task

SOUND = {"question": "q", "reply": "r"}
LINE = json.dumps(SOUND)
BOM = b"\xef\xbb\xbf"
SMILE = "\\ud83d\\ude00"
MAPPED = 'map = { question = QUESTION, reply = "reply" }\n'


def read(tmp_path, name, content, rules=""):
    """(prompt, answer) of each example of a file with this content, or what the content writes."""
    path = tmp_path / name
    if callable(content):
        content(path)
    else:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    task = load_task(str(write_task(tmp_path, TASK.replace("a.jsonl", name) + rules)))
    return [(example.prompt, example.answer) for example in load_examples(task, "train")]


def parquet(changes=None, **options):
    def write(path):
        table = pyarrow.table({name: [text] for name, text in SOUND.items()} | (changes or {}))
        pyarrow.parquet.write_table(table, path, **options)

    return write


def flipped(path):
    """A page with one wrong bit, which only its checksum shows."""
    words = "words that fill a page"
    parquet({"reply": [words]}, write_page_checksum=True, use_dictionary=False, compression="none")(path)
    path.write_bytes(path.read_bytes().replace(words.encode(), words.replace("f", "g").encode()))


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.jsonl", BOM + LINE.encode()),
        ("a.json", BOM + f"[{LINE}]".encode()),
        ("a.csv", BOM + b"question,reply\nq,r\n"),
        ("a.csv", BOM + b'"question",reply\r\nq,r\r\n'),
        ("a.csv", b"question,reply,,\nq,r,,\n"),
        ("a.jsonl", LINE.replace("}", f', "other": {"7" * 5000}}}')),
        ("a.jsonl", LINE.replace("}", ', "other": NaN}')),
        ("a.jsonl", LINE.replace("}", ', "other": "\\ud83d"}')),
        ("a.csv", "question,reply,other\nq,r," + "w" * 200_000),
        ("a.csv", "question,reply,other,other\nq,r,1,2"),
        ("a.parquet", parquet()),
        ("a.parquet", parquet({"other": pyarrow.array([2**40], pyarrow.timestamp("s"))})),
        ("a.parquet", parquet({"other": [date(2026, 1, 31)]})),
    ],
)
def test_what_is_no_part_of_the_examples_does_not_matter(name, content, tmp_path):
    assert read(tmp_path, name, content) == [("q", " r")]


def test_files_that_were_put_together_may_hold_byte_order_marks(tmp_path):
    assert read(tmp_path, "a.jsonl", (BOM + LINE.encode() + b"\n") * 2) == [("q", " r")] * 2


@pytest.mark.parametrize(
    "word", ["NaN", "nan", "1e999", "inf", "None", "null", "007", "w" * 200_000, "7" * 5000]
)
def test_a_word_stays_that_word(word, tmp_path):
    assert read(tmp_path, "a.csv", f"question,reply\nq,{word}\n") == [("q", f" {word}")]
    assert read(tmp_path, "a.jsonl", json.dumps(SOUND | {"reply": word})) == [("q", f" {word}")]


def test_a_number_of_many_digits_keeps_them(tmp_path):
    assert read(tmp_path, "a.jsonl", LINE.replace('"r"', "7" * 5000)) == [("q", " " + "7" * 5000)]


def test_an_escaped_character_is_read(tmp_path):
    assert read(tmp_path, "a.jsonl", LINE.replace('"r"', f'"{SMILE}"')) == [("q", " \U0001f600")]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (
            "a.jsonl",
            f"{LINE}\n" + LINE.replace('"r"', '"\\ud83d"'),
            r"a\.jsonl:2: 'reply' has half of a character",
        ),
        ("a.jsonl", LINE.replace('"r"', "NaN"), r"a\.jsonl:1: 'reply' must be .* finite number, found nan"),
        (
            "a.jsonl",
            LINE.replace('"r"', "-1e999"),
            r"a\.jsonl:1: 'reply' must be .* finite number, found -inf",
        ),
        ("a.jsonl", LINE.replace('"r"', "[" * 100_000), r"a\.jsonl:1: broken JSON: too many brackets"),
        ("a.json", "[" * 100_000, r"a\.json:1: broken JSON: too many brackets"),
        ("a.jsonl", LINE.replace("question", "reply"), r"a\.jsonl:1: broken JSON: key 'reply' twice"),
        ("a.jsonl", '{"a\\nb": 1}', r"a\.jsonl:1: key 'question' is missing; the record has a\\nb$"),
        ("a.csv", "question,reply,reply\nq,r,s\n", r"a\.csv: two columns are called 'reply'"),
        ("a.csv", "question,reply\nq,r\n".encode("utf-16"), r"a\.csv: .* not UTF-8 \(byte 0\)"),
        ("a.csv", "question,reply\nq,caf\u00e9\n".encode("latin-1"), r"a\.csv: .* not UTF-8 \(byte 20\)"),
        ("a.parquet", flipped, r"a\.parquet: cannot be read as Parquet: .*CRC"),
        ("a.parquet", b"PAR1", r"a\.parquet: cannot be read as Parquet"),
        ("a.parquet", parquet({"reply": [float("nan")]}), r"a\.parquet, record 1: 'reply' must be"),
        (
            "a.parquet",
            parquet({"reply": [date(2026, 1, 31)]}),
            r"a\.parquet, record 1: 'reply' must be a text",
        ),
        (
            "a.parquet",
            parquet({"reply": pyarrow.array([2**40], pyarrow.timestamp("s"))}),
            r"a\.parquet: cannot be read as Parquet",
        ),
        (
            "a.parquet",
            lambda path: pyarrow.parquet.write_table(pyarrow.table({"question": ["q"]}), path),
            r"a\.parquet: key 'reply' is missing; the file has question",
        ),
        ("a.jsonl", lambda path: path.mkdir(), r"no data file at '.*a\.jsonl', which is a folder"),
    ],
)
def test_what_cannot_be_meant_is_refused_with_its_place(name, content, message, tmp_path):
    with pytest.raises(UserError, match=message) as caught:
        read(tmp_path, name, content)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("rule", "value", "prompt"),
    [
        ('{ join = ["a", "b"] }', None, "w"),
        ('{ join = ["a", "b"] }', " ", "w"),
        ('{ join = ["a", "a"] }', None, "w w"),
        ('{ join = ["a", "b"] }', 7, "w 7"),
        ('{ from = "b", offset = 1 }', 7.0, "8"),
        ('{ from = "b", match = "(.)$" }', 78, "8"),
    ],
)
def test_a_rule_makes_a_text(rule, value, prompt, tmp_path):
    row = json.dumps({"a": "w", "b": value, "reply": "r"})
    assert read(tmp_path, "a.jsonl", row, MAPPED.replace("QUESTION", rule)) == [(prompt, " r")]


@pytest.mark.parametrize(
    ("rule", "value"),
    [
        ('{ join = ["a", "b"] }', ["w"]),
        ('{ join = ["a", "b"] }', float("nan")),
        ('{ from = "b", lines = true }', ["w", None]),
        ('{ from = "b", match = "(.*)" }', None),
        ('{ from = "b", match = "w|(v)" }', "w"),
        ('{ from = "b", split = "," }', None),
        ('{ from = "b", offset = 1 }', 2.7),
        ('{ from = "b", offset = 1 }', True),
        ('{ from = "b", remove = "w" }', 3),
    ],
)
def test_a_rule_makes_no_text_of_what_is_none(rule, value, tmp_path):
    row = json.dumps({"a": "w", "b": value, "reply": "r"})
    with pytest.raises(UserError, match=r"a\.jsonl:1: 'b' "):
        read(tmp_path, "a.jsonl", row, MAPPED.replace("QUESTION", rule))


@pytest.mark.parametrize(
    ("rules", "value", "message"),
    [
        ("below = { id = 3 }", "five", "'id' must be a number, found 'five'"),
        ("below = { id = 3 }", float("nan"), "'id' must be a number, found nan"),
        ("below = { id = 3 }", [1], r"'id' must be a number, found \[1\]"),
        ('unique_by = "id"', [1], r"'id' must be a text or a number, found \[1\]"),
        ('root = "id"', "w", "'id' must be a record, found 'w'"),
        ('root = "other"', "w", "key 'other' is missing"),
    ],
)
def test_a_record_that_a_source_s_rule_does_not_fit_is_named(rules, value, message, tmp_path):
    with pytest.raises(UserError, match=rf"a\.jsonl:1: {message}"):
        read(tmp_path, "a.jsonl", json.dumps(SOUND | {"id": value}), f"{rules}\n")


def test_a_bound_holds_for_the_numbers_of_a_csv_file(tmp_path):
    assert read(tmp_path, "a.csv", "question,reply,id\nq,r,9\np,r,10\n", "below = { id = 10 }\n") == [
        ("q", " r")
    ]
