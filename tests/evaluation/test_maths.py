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
    ("1,331 and 1,728", "1331, 1728"),
    ("1,234, 5,678", "5678, 1234"),
    ("(1,234, 5,678)", "(1234, 5678)"),
    (r"\{1,000, 2,000\}", r"\{2000, 1000\}"),
    (r"\$1,234 \text{ or } \$5,678", "1234, 5678"),
    (r"1,331,\ 1,728", "1331,1728"),
    ("1{,}234, 5{,}678", "1234,5678"),
    (r"1\,234", "1234"),
    ("1 000", "1000"),
    (r" 5\ ", "5"),
    (r"\bf 5", "5"),
    (r"\sin\pi", "0"),
    (r"e^{i\pi}+1", "0"),
    (r"\sqrt{10^{400}}", "10^{200}"),
    (r"|-\sqrt{2}|", r"\sqrt2"),
    ("1.414213562", r"\sqrt{2}"),
    (r"e^{-1000}", r"\frac{1}{e^{1000}}"),
    (r"-3\frac12", "-3.5"),
    (r"2\frac{1}3", r"\frac73"),
    (r"\(7\)", "7"),
    (r"\[\frac12\]", "0.5"),
    (r"\boldsymbol{7}", "7"),
    (r"\boldsymbol{\frac{1}{2}}", "0.5"),
    ("1.5e-9", r"1.5\times 10^{-9}"),
    ("1e3", "1000"),
    ("1e-3", "0.001"),
    ("\u03c0", r"\pi"),
    ("2\u221a3", r"2\sqrt{3}"),
    (r"x=3 \text{ or } x=-1", "-1,3"),
    ("y=3x+2", "3x+2=y"),
    ("x^2+y^2=4", "4=x^2+y^2"),
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
    ("(1,234)", "1234"),
    ("1,234, 5,678", "(1234, 5678)"),
    ("1,234, 5,678", "1, 234, 5, 678"),
    ("12,34", "1234"),
    ("2 3", "6"),
    ("e^{-30}", "e^{-40}"),
    ("e^{-1000}", "e^{-2000}"),
    (r"\frac{\pi}{10^{12}}", r"\frac{\pi}{10^{13}}"),
    (r"\frac{\sqrt{3}}{10^{9}}", "0"),
    (r"\sqrt{2}\cdot 10^{10}", r"\sqrt{2}\cdot 10^{10}+1"),
    (r"\tan\frac{\pi}{2}", "1"),
    ("e^{100000000}", "e^{200000000}"),
    (r"\quad", "5"),
    (r"\text{}", r"\{1,2\}"),
    (r"\,", r"(-\infty,3)\cup(3,\infty)"),
    (",", r"\begin{pmatrix}1\\2\end{pmatrix}"),
    ("", "0"),
    ("9^{9^{9^9}}", "1"),
    ("(" * 300, "1"),
    ("1/0", "1"),
    ("2e-1", "0.2"),
    ("x=3, y=4", "x=4, y=3"),
    ("x^2+y^2=4", "x^2+y^2=5"),
    ("x^2+y^2=4", "4"),
    ("__import__('os')", "1"),
    (r"\begin{pmatrix}1&2\end{pmatrix}", r"\begin{pmatrix}1\\2\end{pmatrix}"),
]


SAME += [
    ("y = x", "x = y"),
    ("2x = y", "y = 2x"),
    ("x^2 + y^2 = r", "r = x^2 + y^2"),
    (r"\theta = 30^\circ", "30"),
    (r"\angle ABC = 30^\circ", "30"),
    ("AB = 5", "5"),
    ("a_{10} = 5", "5"),
    (r"P(A) = \frac12", "0.5"),
    ("f'(x) = 2x", "2x"),
    ("(x, y) = (2, 3)", "(2,3)"),
    ("a = 1, b = 2", "b = 2, a = 1"),
    (r"A = \pi r^2 = 9\pi", r"9\pi"),
    ("2 + 3 = 5", "5"),
    ("12 cm", "12"),
    ("12cm^2", "12"),
    ("5 apples", "5"),
    ("72 degrees", "72"),
    ("€5", "5"),
    ("1 1/2", "1.5"),
    (r"0.1\overline{6}", r"\frac16"),
    (r"\boxed{5}", "5"),
    (r"\varnothing", r"\{\}"),
    (r"x \geq 3", "3 ≤ x"),
    ("2 < x < 5", "5 > x > 2"),
    (r"x \ne 3", r"x\neq 3"),
    (r"\sin^2 x + \cos^2 x", "1"),
    (r"\log_2 8", "3"),
    (r"\arctan 1", r"\frac{\pi}{4}"),
    (r"\tan^{-1} 1", r"\frac{\pi}{4}"),
    (r"\dbinom{5}{2}", "10"),
    (r"\lfloor 3.5 \rfloor + \lceil 3.5 \rceil", "7"),
    (r"\sinh 0", "0"),
]
DIFFERENT += [
    ("x^2 + y^2 = r", "x^2 + y^2"),
    ("x^2 + y^2 = r", "r"),
    ("xy = 5", "5"),
    ("a + b = c", "a + b"),
    ("2x = 6", "6"),
    ("x^2 = 4", "4"),
    ("2 + 3 = 6", "6"),
    ("x = 2y", "y = 2x"),
    ("a = 1, b = 2", "a = 2, b = 1"),
    ("x > 3", "x < 3"),
    ("x > 3", r"x \ge 3"),
    ("2xy", "2"),
    ("1 1/2", "5.5"),
    (r"0.\overline{3}", "0.3"),
    (r"\sin^2 x", r"\sin x^2"),
    (r"\log_2 8", r"\log_3 8"),
    (r"\binom{5}{2}", r"\binom{5}{1}"),
    (r"\lfloor 3.5 \rfloor", "3.5"),
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


@pytest.mark.parametrize(
    "content",
    [
        *("", " ", r"\quad", r"\,", r"\ ", "~", "$ $", "{}", r"\text{ }", r"\hspace{2cm}", r"\phantom{00}"),
        *(r"\underline{\hspace{1em}}", r"\ldots", "?", r"\_\_", r"\left.\right."),
    ],
)
def test_an_empty_box_is_no_answer(content):
    for reference in (
        "5",
        r"(3,\frac{\pi}{2})",
        "1,2",
        r"\{1,2\}",
        r"\begin{pmatrix}1\\2\end{pmatrix}",
        r"\pm 3",
    ):
        written = rf"so \boxed{{{content}}}"
        assert judge(written, rf"\boxed{{{reference}}}", "boxed") is Verdict.NO_ANSWER


@pytest.mark.parametrize("content", ["0", "-", r"\emptyset", r"\{\}", r"\text{None}", r"\infty", ".5"])
def test_a_box_with_a_sign_in_it_is_an_answer(content):
    assert boxed(rf"\boxed{{{content}}}") == content


def test_verdicts_of_the_two_new_forms():
    reference = r" Adding gives $\boxed{\frac{3}{2}}$."
    assert judge(r"It is \boxed{1.5}", reference, "boxed") is Verdict.RIGHT
    assert judge(r"It is \boxed{2}", reference, "boxed") is Verdict.WRONG
    assert judge("It is 1.5", reference, "boxed") is Verdict.NO_ANSWER
    options = ("w", "x", "y", "z")
    for written in ("The answer may be A. Answer: **D**", r"so \boxed{\text{D}}", "Answer: (D)", " D"):
        assert extract_answer(written, "final_letter", options) == "D"
