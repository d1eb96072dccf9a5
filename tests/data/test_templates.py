"""A wording is its text with fields in it; any brace that is neither a field nor doubled is refused."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dwellmoe.data.task import load_task
from dwellmoe.data.templates import fill, placeholders
from dwellmoe.errors import UserError
from tests.data.stand_ins import TASK, write_task

PIECES = st.one_of(
    st.sampled_from(["a", "b_2"]).map(lambda name: (f"{{{name}}}", f"<{name}>")),
    st.text(st.sampled_from("{} w\n")).map(lambda text: (text.replace("{", "{{").replace("}", "}}"), text)),
)


@given(st.lists(PIECES))
def test_doubled_braces_are_text_and_names_are_fields(pieces):
    template, text = ("".join(part[i] for part in pieces) for i in range(2))
    assert fill(template, {"a": "<a>", "b_2": "<b_2>"}) == text
    assert text == template.format(a="<a>", b_2="<b_2>")


@given(st.text(st.sampled_from("{}{}a!r:>1.[0] \n")))
def test_what_python_would_not_take_as_plain_names_is_refused_everywhere_alike(template):
    refused = [False, False]
    for i, use in enumerate(
        (placeholders, lambda text: fill(text, dict.fromkeys(("a", "r", "1", "0"), "w")))
    ):
        try:
            use(template)
        except (UserError, KeyError):
            refused[i] = True
    rest = re.sub(r"\{\{|\}\}|\{\w+\}", "", template)
    assert refused[0] == bool(re.search("[{}]", rest)) and refused[0] <= refused[1]


def test_names_are_in_their_order_and_each_once():
    assert placeholders("{b} {{c}} {a} {b}") == ("b", "a")


@pytest.mark.parametrize("key", ["prompt", "answer", "chat_prompt", "chat_answer", "program"])
@pytest.mark.parametrize(
    ("piece", "column"),
    [
        ("{question!r}", 3),
        ("{question:>100000000}", 3),
        ("{question.__class__}", 3),
        ("{question[0]}", 3),
        ("{}", 3),
        ("{ question }", 3),
        ("{question", 3),
        ("question}", 11),
        ("{{question}", 13),
        ("{question}}", 13),
    ],
)
def test_a_faulty_brace_is_reported_with_its_place(key, piece, column, tmp_path):
    text = re.sub(rf"^{key} = .*\n", "", TASK, flags=re.MULTILINE)
    path = write_task(tmp_path, f'{key} = "w\\nw {piece}"\n{text}')
    with pytest.raises(UserError, match=f"'{key}', line 2, column {column}, "):
        load_task(str(path))


@pytest.mark.parametrize(("name", "nearest"), [("qestion", "question"), ("replies", "reply"), ("0", None)])
def test_a_placeholder_that_is_no_field_is_told_the_nearest(name, nearest, tmp_path):
    hint = f"did you mean '{nearest}'" if nearest else "choose from question, reply"
    with pytest.raises(UserError, match=f"'prompt': unknown field '{name}': {hint}"):
        load_task(str(write_task(tmp_path, TASK.replace("{question}", f"{{{name}}}"))))
