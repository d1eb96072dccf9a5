"""Answers are found in each form, nothing found is no answer, numbers are read exactly and never run."""

from fractions import Fraction

import pytest

from dwellmoe.errors import UserError
from dwellmoe.evaluation.answers.judge import EXTRACTORS, Verdict, extract_answer, judge
from dwellmoe.evaluation.answers.number_answers import parse_number


@pytest.mark.parametrize(
    ("written", "found"),
    [
        (" true", "true"),
        ("False.", "false"),
        ("That is not true, because it rains.", "false"),
        ("True or false? It is false", "false"),
        ("yes", "true"),
        ("No, it does not", "false"),
        ("no idea", None),
        ("untrue", None),
        ("", None),
    ],
)
def test_true_false(written, found):
    assert extract_answer(written, "true_false") == found


@pytest.mark.parametrize(
    ("written", "found"),
    [
        (" 3", "3"),
        ("2. because 4 is wrong", "2"),
        ("Of 4 options the answer is (3).", "3"),
        ("Option 1", "1"),
        ("It costs $3 or 3.5 or 1,000", None),
        ("5", None),
        ("0", None),
        ("99999999999999999999999999", None),
        ("none of them", None),
    ],
)
def test_option_number(written, found):
    assert extract_answer(written, "option_number", ["w"] * 4) == found


@pytest.mark.parametrize(
    ("written", "found"),
    [
        (" B", "B"),
        ("b", "B"),
        ("(C) the sea", "C"),
        ("A. a hen", "A"),
        ("A hen would do, so the answer is D", "D"),
        ("The answer: b", None),
        ("I think C", "C"),
        ("A hen lays eggs", None),
        ("Z", None),
        ("E", None),
        ("", None),
    ],
)
def test_option_letter(written, found):
    assert extract_answer(written, "option_letter", ["w"] * 4) == found


@pytest.mark.parametrize(
    ("written", "found"),
    [
        (" 2 + 3 = 5\n#### 5", "5"),
        ("#### $1,234.50 in all\n#### 7", "$1,234.50 in all"),
        ("So the answer is 12.", "12."),
        ("#### ", None),
        ("it is 12", None),
    ],
)
def test_rationale(written, found):
    assert extract_answer(written, "rationale") == found


def test_choice_text_is_the_longest_choice_the_text_begins_with():
    choices = ["a hen", "a hen house", "the sea"]
    assert extract_answer(" A hen house, of course", "choice_text", choices) == "a hen house"
    assert extract_answer("some hen", "choice_text", choices) is None


def test_free_text_is_all_of_it():
    assert extract_answer(" as is \n", "free_text") == "as is"
    assert extract_answer(" \n", "free_text") is None


@pytest.mark.parametrize(
    ("written", "value"),
    [
        ("1,234.5", Fraction("1234.5")),
        ("$1,000,000", Fraction(1_000_000)),
        ("-$7", Fraction(-7)),
        ("$-7", Fraction(-7)),
        ("\u22127", Fraction(-7)),
        ("3/4", Fraction(3, 4)),
        ("-3 / 4", Fraction(-3, 4)),
        ("1 1/2", Fraction(3, 2)),
        (".5", Fraction(1, 2)),
        ("1.2e-3", Fraction("0.0012")),
        ("5 x 10^4", Fraction(50_000)),
        ("5 \u00d7 10^\u22122", Fraction("0.05")),
        ("18 apples", Fraction(18)),
        ("x = 42.", Fraction(42)),
    ],
)
def test_numbers_are_read_exactly(written, value):
    number = parse_number(written)
    assert number is not None and number.value == value and not number.is_percentage


def test_a_percentage_keeps_its_sign():
    number = parse_number("12.5 %")
    assert number is not None and number.value == Fraction("12.5") and number.is_percentage


@pytest.mark.parametrize(
    "written", ["", "none", "1/0", "1 1/0", "9" * 60, "1e999999999", "9**9**9**9" * 20, "-"]
)
def test_what_is_no_number(written):
    number = parse_number(written)
    assert number is None or abs(number.value) <= 9


@pytest.mark.parametrize(
    ("written", "reference", "verdict"),
    [
        ("so\n#### 18.0", "r\n#### 18", Verdict.RIGHT),
        ("#### $1,800", "#### 1800", Verdict.RIGHT),
        ("#### 50%", "#### 50", Verdict.RIGHT),
        ("#### 0.5", "#### 50%", Verdict.RIGHT),
        ("#### 1/3", "#### 0.33333", Verdict.RIGHT),
        ("#### 10001", "#### 10000", Verdict.WRONG),
        ("#### b", "#### B", Verdict.RIGHT),
        ("#### 18 apples", "#### 17", Verdict.WRONG),
        ("no marker", "#### 17", Verdict.NO_ANSWER),
        ("#### __import__('os').getcwd()", "#### 17", Verdict.WRONG),
    ],
)
def test_rationales_are_judged_by_their_number(written, reference, verdict):
    assert judge(written, reference, "rationale") is verdict


@pytest.mark.parametrize(
    ("form", "right", "wrong"),
    [
        ("true_false", " true", " false"),
        ("option_number", " 2", " 1"),
        ("option_letter", " B", " A"),
        ("choice_text", " the sea", " a hen"),
        ("rationale", " r\n#### 4", " r\n#### 5"),
        ("final_letter", "Not A.\nAnswer: B", "Answer: A"),
        ("boxed", r" so \boxed{4}", r" so \boxed{5}"),
        ("free_text", " a word", " another"),
    ],
)
def test_every_form_tells_right_wrong_and_nothing_apart(form, right, wrong):
    choices = ["a hen", "the sea"]
    assert judge(right, right, form, choices) is Verdict.RIGHT
    assert judge(wrong, right, form, choices) is Verdict.WRONG
    assert judge(" ", right, form, choices) is Verdict.NO_ANSWER


def test_the_forms_are_those_of_task_files():
    from dwellmoe.data.task import ANSWER_FORMS

    assert {*EXTRACTORS, "code"} == set(ANSWER_FORMS), "code is run, not read"


def test_an_unknown_form_lists_the_known_ones():
    with pytest.raises(UserError, match="'essay': choose from boxed, choice_text"):
        extract_answer("w", "essay")
