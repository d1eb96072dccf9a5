"""Answers are found in each form, nothing found is no answer, numbers are read exactly and never run."""

import argparse
import ast
import decimal
import fractions
import random
import statistics
import textwrap
import time
import typing
from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dwellmoe.data.examples import Example
from dwellmoe.data.task import Task
from dwellmoe.errors import UserError
from dwellmoe.evaluation.answers.code_blocks import find_code
from dwellmoe.evaluation.answers.final_text import final_text
from dwellmoe.evaluation.answers.judge import EXTRACTORS, Verdict, extract_answer, judge, program_of
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
        ("untrue", "false"),
        ("It is untrue.", "false"),
        ("That is not untrue", "true"),
        ("I doubt that it's true", "false"),
        ("I doubt this is true.", "false"),
        ("No doubt it is true", "true"),
        ("I don't doubt that it is true", "true"),
        ("Without doubt, it is true", "true"),
        ("", None),
        ("It isn't true.", "false"),
        ("It isn\u2019t really true", "false"),
        ("I don't think it's true.", "false"),
        ("It cannot be true", "false"),
        ("That is no longer true", "false"),
        ("It's not the case that it is true", "false"),
        ("The statement is not false", "true"),
        ("This statement is true.", "true"),
        ("Not only is it true, it is plain", "true"),
        ("It is true that cats purr, but the answer is false.", "false"),
        ("No, because the true story differs.", "false"),
        ("I cannot say whether it is true", None),
        ("neither true nor false", None),
        ("<think>true</think>false", "false"),
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
        ("The answer is 2. Option 1 is a trap.", "2"),
        ("Option 1 is wrong. The answer is 2", "2"),
        ("The value is 11. Answer: 2", "2"),
        ("2\n\nQuestion: which?\nAnswer: 1", "2"),
        ("001" + "0" * 6000, None),
        ("The answer is 1 or 2", None),
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
        ("The answer: b", "B"),
        ("I think C", "C"),
        ("A hen lays eggs", None),
        ("Z", None),
        ("E", None),
        ("", None),
    ],
)
def test_option_letter(written, found):
    assert extract_answer(written, "option_letter", ["w"] * 4) == found


STATED = [
    ("The answer is B. Note that option A is a common trap.", "B"),
    ("Answer: B\n\nOption A is too small, option C too large.", "B"),
    ("The correct answer is (C).\nOption D fails because it ignores heat.", "C"),
    ("**Answer: D**\n\n(Choice B forgets the sign.)", "D"),
    ("answer: c", "C"),
    ("So the answer is d", "D"),
    ("The answer is not B but D.", "D"),
    ("The answer is not A, B, or C. It's D.", "D"),
    ("Answer: rules out C, leaving D", "D"),
    ("Answer: D, not B", "D"),
    ("A is incorrect, B is correct, C is incorrect.", "B"),
    ("The answer is A? No, the answer is D.", "D"),
    ("If the answer were A we would see red. The answer is C.", "C"),
    ("A common wrong answer is A, but the right answer is D.", "D"),
    ("Both A and B are wrong; the answer is C.", "C"),
    ("The best answer here is C.", "C"),
    ("I would take B, a safe guess.", "B"),
    ("A lamp gives light, so B.", "B"),
    (r"So $\boxed{\text{B) green}}$, since A is red", "B"),
    (r"$\boxed{\textbf{(C)}}$", "C"),
    ("\u7b54\u6848\uff1a\uff22", "B"),
    ("<think>Maybe the answer is A.</think>\nThe answer is B.", "B"),
    ("Maybe A. </think>\n\n**D**", "D"),
    ("The answer is C. Wait, actually it's D.", "D"),
    ("The answer is C. Wait, that is a long way.", "C"),
    ("B or C? C.", "C"),
    ("It's (b).", "B"),
    ("Option a is wrong; option b is right.", "B"),
    ("Choose a color: c", "C"),
    ("<think>the answer is A", None),
    ("The answer is A or B", None),
    ("I cannot tell.", None),
    ("All of the above are right.", None),
    ("The answer is a hen? No: the answer is C", "C"),
]


@pytest.mark.parametrize("form", ["option_letter", "final_letter"])
@pytest.mark.parametrize(("written", "found"), STATED)
def test_the_letter_that_is_stated_wins_over_those_of_the_explanation(written, found, form):
    assert extract_answer(written, form, ["w"] * 4) == found


COLOURS = ("red", "green", "blue", "light grey")
CORRECTED = [
    ("The answer is A. No, it's D.", "D"),
    ("The answer is A... wait, B", "B"),
    ("I'd say A. Actually C.", "C"),
    ("Answer: A\n\nHmm, actually C", "C"),
    ("The answer is B — no, C.", "C"),
    ("B. No wait, it's C.", "C"),
    ("The answer is B. Sorry, I meant C.", "C"),
    ("The answer is B. I made a mistake. It should be C.", "C"),
    ("Answer: B. Oops, D.", "D"),
    ("The answer is B. No, A is wrong because it is small.", "B"),
    ("The answer is B. No other option fits.", "B"),
    ("The answer is actually C, as A is red.", "C"),
]
SMALL = [
    ("The answer is b because grass is green", "B"),
    ("answer is a because it is red", "A"),
    ("the answer is b and not a", "B"),
    ("i would choose b since it fits", "B"),
    ("it's c", "C"),
    ("b because grass is green", "B"),
    ("the answer is a colour", None),
    ("so a cat is as good as a dog", None),
]
JUDGED = [
    ("A. Incorrect\nB. Incorrect\nC. Correct\nD. Incorrect", "C"),
    ("A: ✗\nB: ✓\nC: ✗\nD: ✗", "B"),
    ("Eliminating A, B, and C, we are left with D.", "D"),
    ("Neither A nor B.", None),
    ("It could be A, but B is better.", "B"),
    ("A: C", "C"),
]
TEXTS = [
    ("The answer is blue.", "C"),
    ("Light\ngrey", "D"),
    ("The answer is not red but green.", "B"),
    (r"\boxed{\text{blue}}", "C"),
    ("The right choice is red, not blue.", "A"),
    ("The answer is blue, since B is green.", "C"),
    ("The answer is B, not blue.", "B"),
    ("The answer is blue or green.", None),
    ("The answer is blue whales.", None),
    ("The answer is grey.", None),
    ("Colours such as red and blue exist.", None),
]


@pytest.mark.parametrize("form", ["option_letter", "final_letter"])
@pytest.mark.parametrize(("written", "found"), [*CORRECTED, *SMALL, *JUDGED, *TEXTS])
def test_corrections_and_choices_in_words(written, found, form):
    assert extract_answer(written, form, COLOURS) == found


@pytest.mark.parametrize("form", ["option_letter", "final_letter"])
@pytest.mark.parametrize(
    ("written", "choices", "found"),
    [
        ("The answer is 4.", ("3", "4", "45", "5"), "B"),
        ("The answer is 4.5", ("3", "4", "45", "5"), None),
        ("The answer is -4", ("3", "4", "45", "5"), None),
        ("The answer is New York City.", ("New York", "York", "Boston", "New York City"), "D"),
        ("The answer is red.", ("red", "red", "blue", "grey"), None),
        ("The answer is B.", ("D", "C", "B", "A"), "B"),
        ("", ("", "blue", "red", "grey"), None),
    ],
)
def test_a_choice_is_known_by_its_whole_text(written, choices, found, form):
    assert extract_answer(written, form, choices) == found


@pytest.mark.parametrize(
    ("written", "found"),
    [
        ("Based on the passage, no.", "false"),
        ("Is it true? Yes.", "true"),
        ("True. No, wait, it's false.", "false"),
        ("It would be wrong to say this is true", "false"),
        ("The opposite is true", "false"),
        ("Nothing could be further from true", "false"),
    ],
)
def test_truth_in_other_words(written, found):
    assert extract_answer(written, "true_false") == found


@pytest.mark.parametrize(
    ("written", "found"),
    [
        ("the answer is solution1", "1"),
        ("use a fork", "2"),
        ("The answer is: use a spoon.", "1"),
        ("1. No, wait, 2.", "2"),
        ("1 or 2", None),
    ],
)
def test_option_numbers_in_other_words(written, found):
    assert extract_answer(written, "option_number", ("use a spoon", "use a fork")) == found


def test_a_direct_answer_ends_before_the_models_next_question():
    assert extract_answer("Answer: B\n\nQuestion: And?\nAnswer: C", "option_letter", ["w"] * 4) == "B"


@pytest.mark.parametrize(
    ("written", "found"),
    [
        (" 2 + 3 = 5\n#### 5", "5"),
        ("#### $1,234.50 in all\n#### 7", "$1,234.50 in all"),
        ("So the answer is 12.", "12."),
        ("The answer would be 12", "12"),
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
    assert extract_answer("a hence", "choice_text", choices) is None


def test_free_text_is_all_of_it():
    assert extract_answer(" as is \n", "free_text") == "as is"
    assert extract_answer(" \n", "free_text") is None


@pytest.mark.parametrize(
    ("written", "value"),
    [
        ("1,234.5", Fraction("1234.5")),
        ("$1,000,000", Fraction(1_000_000)),
        ("1\u202f234", Fraction(1234)),
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


def test_reasoning_is_no_answer():
    assert final_text("<think>a</think> b <thinking>c</thinking>d") == " b d"
    assert final_text("begun in the prompt </think>b") == "b"
    assert final_text("b [THINK] cut off") == "b "
    assert final_text('split("</think>")') == 'split("</think>")'


F = "```"
RIGHT = "def twice(n):\n    return 2 * n\n"
WRONG = "def twice(n):\n    return n + 3\n"
DOCUMENTED = f'''def twice(n):
    """Doubles.

    {F}
    >>> twice(2)
    {F}
{F}python
twice(2)
{F}
    """
    return 2 * n
'''
FAILING_TEST = "class TestTwice:\n    def test(self): raise ValueError\n\nTestTwice().test()\n"
PROGRAMS = [
    f"Sample:\n{F}text\n2\n{F}\nThe function:\n{F}python\n{RIGHT}{F}\n",
    f'For {F}json\n{{"n": 2}}\n{F}\nuse\n{F}python\n{RIGHT}{F}\nDone.',
    f"Run\n{F}bash\npython twice.py\n{F}\n\n{F}\n{RIGHT}{F}\n",
    f"{F}python3.11\n{RIGHT}{F}\nThat's all.\n",
    f'{F}PYTHON title="twice.py"\n{RIGHT}{F}\nThat is all.\n',
    f"{F}{{.python .numberLines}}\n{RIGHT}{F}",
    f"~~~python\n{RIGHT}~~~",
    f"{F}`python\n{RIGHT}{F}`",
    f"{F}markdown\n# Solution\n{F}python\n{RIGHT}{F}\n{F}",
    f"{F}python\r\n{RIGHT}{F}\r\n".replace("\n", "\r\n"),
    f"1. Here:\n   {F}python\n   def twice(n):\n       return 2 * n\n   {F}\n",
    f"> {F}python\n> def twice(n):\n>     return 2 * n\n> {F}\n",
    f"{F}python\n    def twice(n):\n        return 2 * n\n{F}",
    "Here it is:\n\n    def twice(n):\n        return 2 * n\n\nIt doubles the number.",
    f"Sure:\n{F}python\n{RIGHT}",
    f"{F}python\n{RIGHT.rstrip()}{F}",
    f"{F}python\n{DOCUMENTED}{F}\nIt's done.",
    DOCUMENTED,
    f"{F}python\n{RIGHT}\nThis doubles the number.",
    RIGHT,
    RIGHT + F,
    RIGHT + f"{F}\nThis doubles it. Usage:\n{F}python\nprint(twice(2))\n{F}",
    "Here's the function:\n\n" + RIGHT + "\nThis doubles the number.\n",
    f"Use {F}twice = lambda n: 2 * n{F} for it.",
    f"<think>\nPerhaps\n{F}python\n{WRONG}{F}\nno.\n</think>\n\n{F}python\n{RIGHT}{F}",
    f"Perhaps\n{F}python\n{WRONG}{F}\n</think>\n{F}python\n{RIGHT}{F}",
    f"First:\n{F}python\n{WRONG}{F}\nThat is wrong for 2. Corrected:\n{F}python\n{RIGHT}{F}",
    f"{F}python\n{RIGHT}{F}\nUsage:\n{F}python\nn = int(input())\nprint(twice(n))\n{F}",
    f"{F}python\n{RIGHT}{F}\nTest:\n{F}python\n{FAILING_TEST}{F}",
    f"{F}python\nTWO = 2\ndef f(n):\n    return n\n{F}\n{F}python\ndef twice(n):\n    return f(n) * TWO\n{F}",
    f"{F}python\ndef twice(n):\n    return prod([n, 2])\n{F}\nwith\n{F}python\nfrom math import prod\n{F}",
    f"{F}python\nfrom __future__ import annotations\n{RIGHT}{F}",
    f"{F}python\n{RIGHT}\nif __name__ == '__main__':\n    import sys; print(twice(int(sys.argv[1])))\n{F}",
    f"[PYTHON]\n{RIGHT}[/PYTHON]\nDone here.",
    f"Sure!\n\n{RIGHT}\n**Explanation:** It doubles `n`.",
    "\u8fd9\u662f\u51fd\u6570\uff1a\n\n" + RIGHT + "\n\u5b83\u628a\u6570\u5b57\u52a0\u500d\u3002",
    f"1.\t{F}python\n\tdef twice(n):\n\t\treturn 2 * n\n\t{F}",
    f'{F}python\n# don\'t """ do\n{RIGHT}{F}\nIt\'s """ done.',
    f"{F}python\ns = '''\n{F}\n'''\n{RIGHT}{F}\nOk then.",
    f"{F}python\n{RIGHT}\nUsage example:\n{F}python\nprint(twice(4))\n{F}",
    f"{F}python\n{RIGHT}{F}\nSignature:\n\ndef twice(n):\n",
    f"{F}python\n{RIGHT}{F}\n{F}javascript\nclass twice {{}}\n{F}",
    f"{F}python\n!pip install numpy\n%matplotlib inline\n{RIGHT}{F}",
    f"{F}`text\n{F}python\n{WRONG}{F}\n{F}`\n{F}python\n{RIGHT}{F}",
    "Use `twice = lambda n: 2 * n` here.",
    f"Install:\n{F}\npip install nothing\n{F}\n{F}python\n{RIGHT}{F}",
    f"\ufeff{F}python\n# gr\u00f6\u00dfer \u6570\u5b57\n{RIGHT}{F}",
]


OTHER = "def twice(n):\n    return n + 3\n"
PROGRAMS += [
    f"<p>Here it is:</p>\n<pre><code>{RIGHT}</code></pre>\n<p>It doubles.</p>",
    f'<pre lang="python"><code class="x">\n{RIGHT}</code>\n</pre>\nDone.',
    f"Use <code>n</code> as it is:\n<code>\n{RIGHT}</code>",
    "<pre><code>def twice(n):\n    return 2 * n if -9 &lt; n else n + n\n</code></pre>",
    f"<solution>\n{RIGHT}</solution>",
    f"{RIGHT}<|endoftext|>",
    f"{RIGHT}</s>\n",
    ">>> def twice(n):\n...     return 2 * n\n...\n>>> twice(2)\n4\n",
    f"{F}python\n" + RIGHT.replace("    ", "\u00a0" * 4) + F,
    f"{F}python\n\u200b{RIGHT}{F}",
    f"{F}python\n{RIGHT}{F}\nDo not write it like this:\n{F}python\n{OTHER}{F}\n",
    f"{F}python\n{RIGHT}{F}\nA common mistake is:\n{F}\n{OTHER}{F}\n",
    f"{F}python\n{RIGHT}{F}\n\n**Incorrect:**\n{F}python\n{OTHER}{F}\n",
    f"{F}python\n{RIGHT}{F}\nInstead of\n{F}python\n{OTHER}{F}\nwhich adds three.",
    f"✅ Good:\n{F}python\n{RIGHT}{F}\n❌ Bad:\n{F}python\n{OTHER}{F}",
    f"{F}python\n# Good\n{RIGHT}{F}\n{F}python\n# Bad: do not use\n{OTHER}{F}",
    f"Don't do this:\n{F}python\n{OTHER}{F}\nInstead:\n{F}python\n{RIGHT}{F}\n",
    f"{F}python\n{OTHER}{F}\nThat was a mistake, here is one that does not fail:\n{F}python\n{RIGHT}{F}",
    f"{F}python\n{OTHER}{F}\nI made an error. To avoid the wrong sum, use this:\n{F}python\n{RIGHT}{F}",
    f"{F}python\n{OTHER}{F}\nThis one handles incorrect input:\n{F}python\n{RIGHT}{F}",
    f"Do not use recursion here:\n{F}python\n{RIGHT}{F}",
    f"The code above is wrong:\n{F}python\n{RIGHT}{F}",
]


@pytest.mark.parametrize("before", ["", 'def twice(n):\n    """Twice a number."""\n'])
@pytest.mark.parametrize("written", PROGRAMS)
def test_the_program_is_found_however_it_is_handed_over(written, before):
    task = Task("t", None, (), program="{before}{code}\n\n{tests}\n")  # type: ignore[arg-type]
    tests = "assert twice(2) == 4\nassert twice(-3) == -6"
    exec(program_of(task, Example("", "", {"before": before, "tests": tests}), written), {})


@pytest.mark.parametrize("module", [argparse, ast, decimal, fractions, random, statistics, textwrap, typing])
def test_no_line_of_python_is_taken_for_prose(module):
    source = Path(module.__file__).read_text()
    assert find_code(f"{F}python\n{source}{F}", "", "") == source
    assert find_code(source, "", "") == source


@pytest.mark.parametrize(
    "body", ["    return 2 * n\n", f"{F}\n    return 2 * n\n{F}", "    a, b = n, n\n    return a + b\n"]
)
def test_the_body_of_a_function_keeps_its_margin(body):
    task = Task("t", None, (), program="def twice(n):\n{code}\nassert twice(2) == 4\n")  # type: ignore[arg-type]
    exec(program_of(task, Example("", "", {}), body), {})


def _judge_all(text: str) -> None:
    task = Task("t", None, (), program="{code}\nf(1)\n")  # type: ignore[arg-type]
    program_of(task, Example("", "", {}), text)
    for form in EXTRACTORS:
        for choices in ((), ("a", "b", "c")):
            assert judge(text, text, form, choices) in Verdict


@given(st.text(st.characters(), max_size=60))
def test_any_text_is_judged(text):
    """Control characters and halves of surrogate pairs too."""
    _judge_all(text)


@pytest.mark.slow
@pytest.mark.parametrize(
    "unit",
    [
        *"19 \n-A{[`'<_\ud800\0",
        *("<pre><code>\n", "<solution>\n", "wait, ", "do not this ", ">>> x\n", "A. No\n", "no, "),
        *('"""\n', "```\n", "~~~\n", '```python\n"""\n', "answer ", "answer: ", "not A, ", "isn't "),
        *(
            "true     ",
            "\\boxed{",
            "\\fbox{}",
            "<think>",
            "</think>",
            "so ",
            "wait ",
            "B is ? ",
            "option a ",
            "A is ",
            "1,",
            "1/",
            "- ",
            "x = ",
        ),
    ],
)
def test_a_long_text_takes_less_than_a_second(unit):
    text = unit * (100_000 // len(unit))
    task = Task("t", None, (), program="{code}\nf(1)\n")  # type: ignore[arg-type]
    for form in EXTRACTORS:
        began = time.process_time()
        extract_answer(text, form, ["w"] * 4)
        assert time.process_time() - began < 1, form
    began = time.process_time()
    program_of(task, Example("", "", {}), text)
    parse_number(text)
    assert time.process_time() - began < 1
