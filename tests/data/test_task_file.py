"""Every key of a task file is checked: a value that does not fit is one line with file, key, value and what
fits.
"""

import re

import pytest

from dwellmoe.data.task import Source, Task, load_task, task_names
from dwellmoe.errors import UserError
from tests.data.stand_ins import TASK

VALUES = {
    "text": '"w w"',
    "blank": '" "',
    "whole": "7",
    "float": "1.5",
    "nan": "nan",
    "bool": "true",
    "date": "2026-01-31",
    "time": "07:32:00",
    "list": "[[]]",
    "table": "{ w = [[]] }",
}
"""Values of every type of TOML."""
TEXTS = frozenset(("text", "blank"))
NUMBERS = frozenset(("whole", "float"))
WORDS, FLAGS, NOTHING = frozenset(("text",)), frozenset(("bool",)), frozenset()
TASK_KEYS = {
    "name": {"text"},
    **dict.fromkeys(("summary", "licence", "homepage", "prompt", "answer"), TEXTS),
    **dict.fromkeys(("chat_prompt", "chat_answer"), TEXTS),
    **dict.fromkeys(("benchmark", "undisclosed", "chat"), FLAGS),
    "answer_tokens": {"whole"},
    **dict.fromkeys(("form", "metric", "fields", "stop", "program", "shuffle_choices_seed"), NOTHING),
    **dict.fromkeys(("source", "mix"), NOTHING),
}
SOURCE_KEYS = {
    **dict.fromkeys(("hub_config", "revision", "root", "unique_by", "note", "article_start"), TEXTS),
    "hub_path": {"text"},
    "shuffle_seed": {"whole"},
    **dict.fromkeys(("kind", "files", "map", "splits", "below", "package", "sha256"), NOTHING),
}
NESTED_KEYS = {
    "files.train": {"text"},
    "splits.train": NOTHING,
    "below.id": NUMBERS,
    **dict.fromkeys(("map.question", "map.question.from"), WORDS),
    **dict.fromkeys(("map.question.split", "map.question.remove"), TEXTS),
    "map.question.match": NOTHING,
    "map.question.offset": {"whole"},
    "map.question.lines": {"bool"},
    "map.question.index_of": NOTHING,
    "map.question.values": NOTHING,
    "map.question.values.w": {*TEXTS, *NUMBERS, "bool", "nan"},
    "map.question.join": NOTHING,
    "map.question.value": {*TEXTS, *NUMBERS, "bool", "nan"},
}
CASES = [
    *((key, fits) for key, fits in TASK_KEYS.items()),
    *((f"source[1].{key}", fits) for key, fits in (SOURCE_KEYS | NESTED_KEYS).items()),
]


def written(folder, key: str, value: str):
    """The task file of `TASK` with this value at this key, of its source where the key says so."""
    of_source = key.startswith("source[1].")
    name = key.removeprefix("source[1].")
    if name.startswith("map."):
        value += '\nmap.reply = "reply"'
    if name.startswith("map.question.") and name.rpartition(".")[2] not in ("from", "join", "value"):
        value += '\nmap.question.from = "question"'
    text = re.sub(rf"^{re.escape(name.partition('.')[0])} = .*\n", "", TASK, flags=re.MULTILINE)
    entry = f"{name} = {value}\n"
    if name == "source":
        text, entry = text[: text.index("[[source]]")], entry
    path = folder / "task.toml"
    path.write_text(text + entry if of_source or name == "source" else entry + text)
    return path


OF_NO_FILE = {"folder", "sources", "layout", "skip_faulty"}
"""What no task file holds."""


def test_the_cases_are_every_key():
    assert {*TASK_KEYS} == {*Task.__dataclass_fields__} - OF_NO_FILE | {"source"}
    assert {*SOURCE_KEYS} == {*Source.__dataclass_fields__}


@pytest.mark.parametrize("kind", VALUES)
@pytest.mark.parametrize(("key", "fits"), CASES, ids=[key for key, _ in CASES])
def test_a_value_of_a_wrong_type_is_reported(key, fits, kind, tmp_path):
    path = written(tmp_path, key, VALUES[kind])
    if kind in fits:
        load_task(str(path))
        return
    with pytest.raises(UserError) as caught:
        load_task(str(path))
    message = str(caught.value)
    assert message.startswith(f"{path}: ") and key in message and "\n" not in message


NEAR = {
    "promt": "prompt",
    "metrics": "metric",
    "source[1].file": "files",
    "source[1].map.question.mach": "match",
}


@pytest.mark.parametrize("key", NEAR)
def test_an_unknown_key_is_told_the_nearest(key, tmp_path):
    with pytest.raises(
        UserError, match=f"unknown key .*'{key.rpartition('.')[2]}': did you mean '{NEAR[key]}'"
    ):
        load_task(str(written(tmp_path, key, '"w"')))


@pytest.mark.parametrize("place", ["match", "split", "remove", "article_start"])
@pytest.mark.parametrize("pattern", ["(", "[a", "a{99999999999}", "*(w)", "(?P<w)"])
def test_a_broken_regular_expression_is_reported(place, pattern, tmp_path):
    key = f"source[1].{place if place == 'article_start' else f'map.question.{place}'}"
    with pytest.raises(UserError, match=f"{re.escape(key)}' is not a regular expression: "):
        load_task(str(written(tmp_path, key, f"'{pattern}'")))


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("answer_tokens", "-1", "'answer_tokens' must be a whole number from 0 on"),
        ("answer_tokens", "9" * 5000, "not a TOML file"),
        ("summary", "[" * 100_000, "not a TOML file"),
        ("stop", '["w", ""]', r"'stop\[2\]' must be a text that is not empty"),
        ("fields", '["question", "reply", 3]', r"'fields\[3\]' must be a text"),
        ("fields", '["question"]', "'answer': unknown field 'reply'"),
        ("fields", '["question", "reply", "choices"]', "'choices' but not 'gold'"),
        ("fields", '["question", "reply", "messages"]', "field 'reply' is made from messages"),
        ("shuffle_choices_seed", "1", "the field 'choices', which 'fields' lacks"),
        ("program", '"{code}"', "'program' judges answers of form 'code', not of form 'free_text'"),
        ("source[1].map.question.match", '"w"', "must hold a group"),
        ("source[1].map", '{ question = "q" }', "has no rule for the field 'reply'"),
        (
            "source[1].splits",
            '{ train = "a[:9%]" }',
            "splits.train': unknown split 'a': choose from test, train",
        ),
        ("source[1].splits", '{ trian = "train" }', "splits 'trian': did you mean 'train'"),
        ("source[1].files", '{ "../a" = "b.jsonl" }', "'../a'"),
        ("source[1].files", '{ train = "a\\u0000.jsonl" }', "files.train' must be the path of a file"),
        ("source[1].package", '"../../x==1"', "must be of the form name==version"),
        ("source[1].sha256", '"0"', "must be 64 hexadecimal digits"),
        ("mix", "{ boolq = inf }", "'mix.boolq' must be a number above 0"),
    ],
)
def test_a_value_that_cannot_be_meant_is_reported(key, value, message, tmp_path):
    with pytest.raises(UserError, match=message):
        load_task(str(written(tmp_path, key, value)))


@pytest.mark.parametrize(
    "name", ["../../x", "/x", "a/b", "a\\b", "..", ".", "", " ", "a\n", "a\0", "w" * 151, "é" * 99]
)
def test_a_name_that_is_no_file_name_is_refused(name, tmp_path):
    text = "".join(f"\\U{ord(letter):08x}" for letter in name)
    with pytest.raises(UserError, match="name"):
        load_task(str(written(tmp_path, "name", f'"{text}"')))
    assert not (tmp_path / "cache").exists()


def test_an_unused_field_is_told(tmp_path, capsys):
    load_task(str(written(tmp_path, "fields", '["question", "reply", "source"]')))
    assert "no wording uses source" in capsys.readouterr().err
    for name in task_names():
        load_task(name)
    assert capsys.readouterr().err == ""


def test_a_byte_order_mark_is_no_part_of_the_file(tmp_path):
    path = written(tmp_path, "summary", '"w"')
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert load_task(str(path)).summary == "w"


@pytest.mark.parametrize("make", ["folder", "unreadable", "latin-1"])
def test_what_is_no_task_file_is_named(make, tmp_path):
    path = tmp_path / "task.toml"
    if make == "folder":
        path.mkdir()
    elif make == "latin-1":
        path.write_bytes("# café".encode("latin-1"))
    else:
        path = path / ("w" * 300 + ".toml")
    with pytest.raises(UserError, match=re.escape(str(path))):
        load_task(str(path))
