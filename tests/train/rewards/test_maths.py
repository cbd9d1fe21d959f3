"""Answers of mathematics: what is found, what counts as the same, and what takes no time whatever it says."""

from __future__ import annotations

import time
from collections.abc import Iterator
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from khola.errors import BadRow
from khola.evals.sandbox.pool import Pool
from khola.evals.sandbox.process import Layers
from khola.train.rewards.expression import equal
from khola.train.rewards.maths import Maths, final_answer, maths, number_of, plain
from khola.train.rewards.reward import scored

SAME = [
    ("1/2", r"\frac12"), ("0.5", r"\frac{1}{2}"), (r"\sqrt{8}", r"2\sqrt2"), (r"\frac{1}{\sqrt2}", r"\frac{\sqrt{2}}{2}"),
    ("x^2-1", "(x-1)(x+1)"), (r"\frac{x^2-1}{x-1}", "x+1"), (r"2\pi", "pi*2"), (r"\left(1,2\right)", "(1, 2)"), (r"\{1,2\}", r"\{2,1\}"),
    ("x=5", "5"), ("(1+√5)/2", r"\frac{1+\sqrt{5}}{2}"), (r"(\sqrt2+\sqrt3)^2", r"5+2\sqrt6"), ("i^2", "-1"), (r"\sqrt{-4}", "2i"),
    ("27^{1/3}", "3"), ("2^{-3}", "0.125"), ("4!", "24"), (r"1/(1+\sqrt2)", r"\sqrt2-1"), (r"\sqrt[3]{54}", r"3\sqrt[3]2"), ("-2^2", "-4"),
    ("2^3^2", "512"), (r"\sin x", r"\sin(x)"), (r"x^{1/2}", r"\sqrt{x}"), ("3+2i", "2i+3"), (r"e^{2}", r"e\cdot e"), ("50%", r"\frac12"),
]  # fmt: skip
OTHER = [
    ("1", "2"), ("(1,2)", "(2,1)"), ("[1,2)", "(1,2)"), ("1/3", "0.333"), (r"\sqrt{x^2}", "x"), ("x+1", "x-1"), ("", "1"), ("1/0", "1/0"),
    ("9^9^9", "1"), (r"\sqrt2", "1.41421356"), ("x", "y"), (r"\{1,2\}", r"\{1,3\}"), (r"\sin x", r"\cos x"), ("2^x", "x^2"),
    ("import os", "1"),     ("__import__('os')", "1"), ("(" * 900, "1"), ("(1,2)", "(1,2,3)"),
]  # fmt: skip


@pytest.fixture(scope="module")
def pool() -> Iterator[Pool]:
    with Pool(1, layers=Layers()) as opened:
        yield opened


@pytest.mark.parametrize(("one", "two"), SAME)
def test_the_same_said_in_two_ways(one: str, two: str) -> None:
    assert equal(one, two) and equal(two, one)


@pytest.mark.parametrize(("one", "two"), OTHER)
def test_different_expressions(one: str, two: str) -> None:
    assert not equal(one, two)


rationals = st.fractions(min_value=-50, max_value=50, max_denominator=12)


@settings(max_examples=20, deadline=None)
@given(a=rationals, b=rationals, c=rationals, n=st.integers(0, 3), root=st.integers(2, 60))
def test_sums_and_products_are_those_of_rational_numbers_with_roots(a: Fraction, b: Fraction, c: Fraction, n: int, root: int) -> None:
    left = f"(({a}) + ({b})\\sqrt{{{root}}}) * (({a}) - ({b})\\sqrt{{{root}}}) + ({c})^{n}"
    assert equal(left, str(a * a - b * b * root + c**n))
    assert not equal(left, str(a * a - b * b * root + c**n + 1))
    assert equal(f"({a})x^{n}*x + ({c})*x", f"x*(({a})*x^{n} + ({c}))")


@pytest.mark.parametrize(
    ("text", "found"),
    [
        (r"so \boxed{3} or rather \boxed{\frac{1}{2}}.", r"\frac{1}{2}"),
        (r"\boxed{1} and then \boxed{unclosed", "1"),
        ("Thus 3 and 4.\nThe final answer is 7.", "7"),
        ("She has 5 apples, so the answer is 12 apples", "12 apples"),
        ("7 + 5 = 12\n#### 12", "12"),
        ("First 1,234 then 5", "5"),
        ("উত্তর: ৪২", "৪২"),
        ("তিনি ১২টি আম কিনলেন", "12"),
        ("nothing here", None),
        ("**Answer:** 3/4", "3/4"),
    ],
)
def test_the_answer_is_found(text: str, found: str | None) -> None:
    assert final_answer(text) == found


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1,234.50", 1234.5),
        ("১২,৩৪,৫৬৭", 1234567),
        ("$3", 3),
        (r"5\text{ cm}", 5),
        ("12 apples", 12),
        ("-7", -7),
        ("3/4", 0.75),
        ("৳১০০", 100),
        ("5.", 5),
    ],
)
def test_numbers_are_read_as_people_write_them(text: str, value: float) -> None:
    found = number_of(plain(text))
    assert found is not None and float(found[0]) == value


@pytest.mark.parametrize(
    ("answer", "gold", "worth"),
    [
        (r"\boxed{\frac{3}{4}}", "0.75", 1.0),
        (r"\boxed{\sqrt{12}}", r"2\sqrt{3}", 1.0),
        ("the answer is 50%", "50", 1.0),
        ("the answer is 50%", "0.5", 1.0),
        ("the answer is 5%", "50", 0.0),
        ("the answer is 0.3333333", r"1/3", 1.0),
        ("the answer is 0.33", "1/3", 0.0),
        ("the answer is 3", "4", 0.0),
        (r"\boxed{Tuesday}", "tuesday", 1.0),
        (r"\boxed{Monday}", "Tuesday", 0.0),
        ("উত্তর: ৭২", "72", 1.0),
        ("I do not know", "72", 0.0),
        ("18", "She makes 9 * 2 = 18 dollars.\n#### 18", 1.0),
        (r"\boxed{(1, \frac12)}", "(1,0.5)", 1.0),
    ],
)
def test_the_worth_of_an_answer(answer: str, gold: str, worth: float, pool: Pool) -> None:
    assert maths(Maths(), pool)("", answer, {"answer": gold}) == worth


def test_only_boxes_count_where_that_is_asked_for(pool: Pool) -> None:
    strict = maths(Maths(boxed=True, wrong=-1.0), pool)
    assert scored(strict, ["", ""], ["the answer is 3", r"\boxed{3}"], [{"answer": 3}] * 2) == [-1.0, 1.0]


@pytest.mark.parametrize("gold", ["", None, "?!", r"\frac{", "x" * 999, ["3"]])
def test_a_right_answer_that_cannot_be_read_is_an_error_of_the_row(gold: object, pool: Pool) -> None:
    with pytest.raises(BadRow):
        maths(Maths(), pool)("", "3", {"answer": gold})


@pytest.mark.parametrize(
    "bomb",
    [
        "9^{9^{9^{9}}}", "(1+x+y+z)^{200}", r"\sqrt{" * 150, "((((x+1)^{99})^{99})^{99})", "(x+y)(x+z)" * 30, "200!" * 90,
        r"\sqrt[199]{3}^{198}" * 20,         "(a+b+c+d+e+f+g+h)^{12}", "1" * 390, "2^{0.1234567891}",
    ],
)  # fmt: skip
@pytest.mark.slow
def test_expressions_that_never_end_are_worth_nothing_in_time(bomb: str, pool: Pool) -> None:
    start = time.monotonic()
    assert maths(Maths(), pool)("", rf"\boxed{{{bomb}}}", {"answer": "x+7"}) == 0.0
    assert time.monotonic() - start < Maths().limits.wall_s + 0.5


@pytest.mark.parametrize(
    "text", ["answer" + " " * 200_000 + "x", r"\boxed{" * 100_000, "1,1" * 100_000, "answer is " * 50_000, "\n" * 300_000]
)
def test_long_texts_are_searched_in_little_time(text: str) -> None:
    start = time.monotonic()
    final_answer(text)
    assert time.monotonic() - start < 1.5
