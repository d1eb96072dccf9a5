"""Results that are the same however they are written, and results that only look it."""

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dwellmoe.evaluation.answers.expressions import Unreadable, evaluate
from dwellmoe.evaluation.answers.judge import Verdict, extract_answer, judge
from dwellmoe.evaluation.answers.maths import boxed, same_result

SAME = [
    (r"\left(3,\frac{\pi}{2}\right)", r"(3, \pi/2)"),
    ("p-q", "-q+p"),
    (r"\frac{14}{3}", "14/3"),
    ("42", "42.0"),
    (r"3\sqrt{13}", r"\sqrt{117}"),
    (r"10,\!080", "10080"),
    ("10{,}080", "10,080"),
    ("1,-2", "-2, 1"),
    ("1 and 3", "3,1"),
    ("52_8", "52_{8}"),
    ("(a+5)(b+2)", "ab+2a+5b+10"),
    ("(3,4]", r"\left(3, 4\right]"),
    (r"1\pm\sqrt{19}", r"1-\sqrt{19}, 1+\sqrt{19}"),
    (r"\{1\pm\sqrt{5},-2\}", r"\{-2,1-\sqrt5,1+\sqrt5\}"),
    (r"\text{Evelyn}", "evelyn"),
    (r"90^\circ", "90"),
    (r"1\frac{4}{5}", "9/5"),
    (r"\frac{270}7", "270/7"),
    (r"x\in[-2,7]", "[-2,7]"),
    (r"(-\infty, 2)\cup(3,\infty)", r"(3,\infty) \cup (-\infty,2)"),
    (r"\begin{pmatrix} 1/5 \\ -18/5 \end{pmatrix}", r"\begin{pmatrix}0.2\\-3.6\end{pmatrix}"),
    (r"16\text{ cm}^2", "16"),
    (r"\$18.90", "18.9"),
    (r"\text{(C)}", "C"),
    ("2^{10}", "1024"),
    (r"\dfrac{17}{50}", ".34"),
    (r"\frac12", "0.5"),
    (r"\cot x", r"\frac{\cos x}{\sin x}"),
    ("y = 2x+3", "2x+3"),
    (r"-1\frac{1}{2}", "-1.5"),
    ("5!", "120"),
]
DIFFERENT = [
    ("(1,2)", "(2,1)"),
    ("(3,4]", "[3,4]"),
    ("(1,2)", "1,2"),
    (r"\{1,2\}", "(1,2)"),
    ("1,1,2", "1,2,2"),
    ("0.333", "1/3"),
    ("3.14", r"\pi"),
    ("52_8", "52_9"),
    ("even", "neve"),
    (r"\sqrt{x^2}", "x"),
    (r"1\pm2", "3"),
    ("(6,310)", "6310"),
    ("", "0"),
    ("9^{9^{9^9}}", "1"),
    ("(" * 300, "1"),
    ("1/0", "1"),
    ("__import__('os')", "1"),
    (r"\begin{pmatrix}1&2\end{pmatrix}", r"\begin{pmatrix}1\\2\end{pmatrix}"),
]


@pytest.mark.parametrize(("one", "other"), SAME)
def test_the_same_result_written_otherwise(one, other):
    assert same_result(one, other) and same_result(other, one)


@pytest.mark.parametrize(("one", "other"), DIFFERENT)
def test_results_that_differ(one, other):
    assert not same_result(one, other) and not same_result(other, one)


@given(st.text(alphabet=r"0123456789x\frac{}()[]^,+-*/!|.esqrt& ", max_size=80))
def test_any_text_is_compared_without_harm(text):
    assert same_result(text, text)
    with contextlib.suppress(Unreadable):
        evaluate(text)


def test_the_last_box_counts_and_its_braces_match():
    assert boxed(r"first \boxed{1}, so \boxed{\frac{1}{2}} holds") == r"\frac{1}{2}"
    assert boxed(r"\boxed 5$.") == "5" and boxed(r"\fbox{3}") == "3"
    assert boxed("nothing") is boxed(r"\boxed{") is boxed(r"\boxed{}") is None


def test_verdicts_of_the_two_new_forms():
    reference = r" Adding gives $\boxed{\frac{3}{2}}$."
    assert judge(r"It is \boxed{1.5}", reference, "boxed") is Verdict.RIGHT
    assert judge(r"It is \boxed{2}", reference, "boxed") is Verdict.WRONG
    assert judge("It is 1.5", reference, "boxed") is Verdict.NO_ANSWER
    options = ("w", "x", "y", "z")
    for written in ("The answer may be A. Answer: **D**", r"so \boxed{\text{D}}", "Answer: (D)", " D"):
        assert extract_answer(written, "final_letter", options) == "D"
