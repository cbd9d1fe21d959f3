"""Exact equality of mathematical expressions: quotients of polynomials over the rationals, with roots, pi, e, i, letters and functions.

This file needs the standard library alone, so that it can be sent whole to a confined process: whatever an expression is made of, the
process that reads it can be killed. Two expressions are called equal only when they are, as quotients (common factors cancel) and with
letters that stand for positive numbers; of equal ones some are not seen (identities of functions, nested roots).

Form   A polynomial is a dictionary from monomials to fractions, a monomial a sorted tuple of (atom, exponent). An atom is a letter, a
       constant, a function of something, or a root; the square root of a prime times itself is that prime, so sums of square roots have one
       form only.
"""

from __future__ import annotations

import re
from fractions import Fraction

TERMS, POWER, NUMBER_BITS = 2000, 200, 20_000
Poly = dict[tuple[tuple[str, int], ...], Fraction]
_TOKEN = re.compile(r"\s*(\\[a-zA-Z]+|\d+\.?\d*|\.\d+|[a-zA-Zα-ωΑ-Ω]|\*\*|[-+*/^(){}\[\]|!,=_%])")
_DROPPED = ("\\left", "\\right", "\\displaystyle", "\\limits", "\\mathrm", "\\operatorname", "\\big", "\\Big")
_FUNCTIONS = frozenset(
    ("sin", "cos", "tan", "cot", "sec", "csc", "arcsin", "arccos", "arctan", "sinh", "cosh", "tanh", "ln", "log"),
)
_SIGNS = {"\\cdot": "*", "\\times": "*", "\\div": "/", "\\lbrack": "[", "\\rbrack": "]", "\\lbrace": "{", "\\rbrace": "}", "**": "^"}
_CLOSING = {"(": ")", "[": "]", "{": "}"}


class Unreadable(ValueError):
    """A text that is no expression, or one that is too large."""


class Quotient:
    """A polynomial over another."""

    def __init__(self, above: Poly, below: Poly | None = None) -> None:
        self.above = above
        self.below = below or {(): Fraction(1)}

    def number(self) -> Fraction | None:
        """The rational number that this is; None when it is none."""
        if set(self.above) <= {()} and set(self.below) == {()}:
            return self.above.get((), Fraction(0)) / self.below[()]
        return None

    def key(self) -> str:
        """A name of this for atoms that are made of it."""
        lead = self.below[max(self.below)]
        parts = [sorted((monomial, value / lead) for monomial, value in part.items()) for part in (self.above, self.below)]
        return re.sub(r"\s", "", repr([[(monomial, str(value)) for monomial, value in part] for part in parts]))


class Algebra:
    """Sums, products and powers, with what is known of the roots met so far."""

    def __init__(self) -> None:
        self.roots: dict[str, tuple[int, Quotient]] = {}

    def rational(self, value: Fraction | int) -> Quotient:
        """A number."""
        return Quotient({(): Fraction(value)} if value else {})

    def atom(self, name: str) -> Quotient:
        """A letter or a constant."""
        return Quotient({((name, 1),): Fraction(1)})

    def add(self, one: Quotient, two: Quotient, sign: int = 1) -> Quotient:
        """A sum, or with sign -1 a difference."""
        if one.below == two.below:
            return Quotient(_sum(one.above, two.above, sign), one.below)
        above = _sum(self._times(one.above, two.below), self._times(two.above, one.below), sign)
        return Quotient(above, self._times(one.below, two.below))

    def multiply(self, one: Quotient, two: Quotient) -> Quotient:
        """A product."""
        return self._reduced(Quotient(self._times(one.above, two.above), self._times(one.below, two.below)))

    def divide(self, one: Quotient, two: Quotient) -> Quotient:
        """A quotient."""
        if not two.above:
            raise Unreadable("division by zero")
        return self._reduced(Quotient(self._times(one.above, two.below), self._times(one.below, two.above)))

    def _reduced(self, one: Quotient) -> Quotient:
        """A number below is taken into what is above."""
        if set(one.below) == {()}:
            return Quotient({monomial: value / one.below[()] for monomial, value in one.above.items()})
        if one.above and one.above.keys() == one.below.keys():
            ratios = {value / one.below[monomial] for monomial, value in one.above.items()}
            if len(ratios) == 1:
                return self.rational(ratios.pop())
        return one

    def _times(self, one: Poly, two: Poly) -> Poly:
        if len(one) * len(two) > TERMS * 20:
            raise Unreadable("too many terms")
        found: Poly = {}
        for left, first in one.items():
            for right, second in two.items():
                for monomial, value in self._monomial(left, right).items():
                    found[monomial] = found.get(monomial, Fraction(0)) + value * first * second
        found = {monomial: value for monomial, value in found.items() if value}
        if len(found) > TERMS or any(value.numerator.bit_length() > NUMBER_BITS for value in found.values()):
            raise Unreadable("too many terms")
        return found

    def _monomial(self, left: tuple[tuple[str, int], ...], right: tuple[tuple[str, int], ...]) -> Poly:
        """The product of two monomials, with roots that meet themselves taken out."""
        powers: dict[str, int] = dict(left)
        for name, exponent in right:
            powers[name] = powers.get(name, 0) + exponent
        factor: Poly = {(): Fraction(1)}
        for name in [name for name, exponent in powers.items() if name in self.roots and exponent >= self.roots[name][0]]:
            degree, inner = self.roots[name]
            whole, powers[name] = divmod(powers[name], degree)
            for _ in range(whole):
                factor = self._times(factor, inner.above)
        rest = tuple(sorted((name, exponent) for name, exponent in powers.items() if exponent))
        return {rest: Fraction(1)} if factor == {(): Fraction(1)} else self._times({rest: Fraction(1)}, factor)

    def power(self, base: Quotient, exponent: Quotient) -> Quotient:
        """A power; exponents that are no numbers make an atom."""
        number = exponent.number()
        if number is None:
            return self.atom(f"power({base.key()},{exponent.key()})")
        if number.denominator > 1:
            return self.power(self.root(base, number.denominator), self.rational(number.numerator))
        if abs(number.numerator) > POWER:
            raise Unreadable("too large a power")
        found, factor = self.rational(1), base
        for bit in bin(abs(number.numerator))[:1:-1]:
            if bit == "1":
                found = self.multiply(found, factor)
            if bit != "b":
                factor = self.multiply(factor, factor) if abs(number.numerator) > 1 else factor
        return self.divide(self.rational(1), found) if number < 0 else found

    def root(self, inner: Quotient, degree: int) -> Quotient:
        """The principal root."""
        if degree > POWER:
            raise Unreadable("too high a root")
        number = inner.number()
        if number is None:
            return self._new_root(inner, degree)
        if number < 0:
            if degree % 2:
                return self.multiply(self.rational(-1), self.root(self.rational(-number), degree))
            if degree > 2:
                raise Unreadable("an even root of a negative number")
            self.roots["i"] = (2, self.rational(-1))
            return self.multiply(self.atom("i"), self.root(self.rational(-number), 2))
        found = self.rational(Fraction(1, number.denominator))
        for prime, exponent in _factors(number.numerator * number.denominator ** (degree - 1)):
            whole, rest = divmod(exponent, degree)
            found = self.multiply(found, self.rational(prime**whole))
            for _ in range(rest):
                found = self.multiply(found, self._new_root(self.rational(prime), degree))
        return found if number else self.rational(0)

    def _new_root(self, inner: Quotient, degree: int) -> Quotient:
        if set(inner.below) != {()}:
            return self.divide(self._new_root(Quotient(inner.above), degree), self._new_root(Quotient(inner.below), degree))
        name = f"root{degree}({inner.key()})"
        self.roots[name] = (degree, inner)
        return self.atom(name)

    def function(self, name: str, inner: Quotient) -> Quotient:
        """A function of something; the few values that everybody knows are put in."""
        known = {("sin", 0): 0, ("tan", 0): 0, ("cos", 0): 1, ("ln", 1): 0, ("log", 1): 0, ("sinh", 0): 0, ("cosh", 0): 1}
        number = inner.number()
        if number is not None and number.denominator == 1 and (name, number.numerator) in known:
            return self.rational(known[name, number.numerator])
        return self.atom(f"{name}({inner.key()})")

    def same(self, one: Quotient, two: Quotient) -> bool:
        """Whether both are the same."""
        return not _sum(self._times(one.above, two.below), self._times(two.above, one.below), -1)


def _sum(one: Poly, two: Poly, sign: int) -> Poly:
    found = dict(one)
    for monomial, value in two.items():
        found[monomial] = found.get(monomial, Fraction(0)) + sign * value
    return {monomial: value for monomial, value in found.items() if value}


def _factors(number: int) -> list[tuple[int, int]]:
    """Prime factors and their exponents; what is left after trying up to a million counts as prime."""
    found, prime = [], 2
    while prime * prime <= number and prime < 1_000_000:
        exponent = 0
        while number % prime == 0:
            number //= prime
            exponent += 1
        if exponent:
            found.append((prime, exponent))
        prime += 1 if prime == 2 else 2
    return [*found, (number, 1)] if number > 1 else found


class Reader:
    """Reads LaTeX or plain notation, one expression or a list of them."""

    def __init__(self, text: str, algebra: Algebra) -> None:
        self.algebra = algebra
        self.tokens = _tokens(text)
        self.at = 0

    def whole(self) -> list[Quotient]:
        """The expressions of the text; an equation gives what stands after its sign."""
        found = [self.sum()]
        while self.peek() in (",", "="):
            sign = self.take()
            found = [*(found if sign == "," else found[:-1]), self.sum()]
        if self.peek():
            raise Unreadable(f"{self.peek()} is left over")
        return found

    def peek(self) -> str:
        """The next token; empty at the end."""
        return self.tokens[self.at] if self.at < len(self.tokens) else ""

    def take(self, wanted: str = "") -> str:
        """The next token, which must be the wanted one if one is wanted."""
        found = self.peek()
        if not found or (wanted and found != wanted):
            raise Unreadable(f"{wanted or 'something'} is missing")
        self.at += 1
        return found

    def sum(self) -> Quotient:
        """Terms with + and - between them."""
        sign = self.take() if self.peek() in ("+", "-") else "+"
        found = self.product()
        if sign == "-":
            found = self.algebra.multiply(self.algebra.rational(-1), found)
        while self.peek() in ("+", "-"):
            sign = self.take()
            found = self.algebra.add(found, self.product(), 1 if sign == "+" else -1)
        return found

    def product(self) -> Quotient:
        """Factors with signs between them, or with none."""
        found = self.signed()
        while True:
            if self.peek() in ("*", "/"):
                sign = self.take()
                right = self.signed()
                found = self.algebra.multiply(found, right) if sign == "*" else self.algebra.divide(found, right)
            elif self.peek() in ("(", "[", "{", "|") or re.match(r"[\\\w.]", self.peek()):
                found = self.algebra.multiply(found, self.raised())
            else:
                return found

    def signed(self) -> Quotient:
        """A factor that may have a sign of its own."""
        if self.peek() in ("+", "-"):
            sign = self.take()
            found = self.signed()
            return found if sign == "+" else self.algebra.multiply(self.algebra.rational(-1), found)
        return self.raised()

    def raised(self) -> Quotient:
        """A factor with its exponents, factorials and percent signs."""
        found = self.primary()
        while self.peek() in ("^", "!", "%"):
            sign = self.take()
            if sign == "^":
                found = self.algebra.power(found, self.signed())
            elif sign == "%":
                found = self.algebra.divide(found, self.algebra.rational(100))
            else:
                found = self.algebra.rational(_factorial(found.number()))
        return found

    def primary(self) -> Quotient:
        """A number, a letter, something in brackets, or a command."""
        token = self.take()
        if token in _CLOSING:
            found = self.sum()
            self.take(_CLOSING[token])
            return found
        if re.match(r"[\d.]", token):
            return self.algebra.rational(Fraction(token if not token.endswith(".") else token[:-1]))
        name = token.removeprefix("\\")
        if name in ("frac", "dfrac", "tfrac", "cfrac"):
            above = self.argument()
            return self.algebra.divide(above, self.argument())
        if name == "sqrt":
            return self.square_root()
        if name in _FUNCTIONS:
            return self.called(name)
        if token.startswith("\\") or token.isalpha():
            return self.letter(token)
        raise Unreadable(f"{token} in place of a number")

    def argument(self) -> Quotient:
        """What belongs to a command: something in braces, or one sign."""
        if self.peek() == "{":
            return self.primary()
        token = self.take()
        if token.isdigit() and len(token) > 1:
            self.tokens[self.at - 1 : self.at] = [token[0], token[1:]]
            return self.algebra.rational(int(token[0]))
        self.at -= 1
        return self.primary()

    def square_root(self) -> Quotient:
        """A root, of a degree in brackets or of two."""
        degree = Fraction(2)
        if self.peek() == "[":
            found = self.primary().number()
            if found is None or found.denominator != 1 or found < 1:
                raise Unreadable("a root of no degree")
            degree = found
        return self.algebra.root(self.argument(), int(degree))

    def called(self, name: str) -> Quotient:
        """A function of what follows."""
        exponent = self.algebra.rational(1)
        if self.peek() == "_":
            self.take()
            name += self.argument().key()
        if self.peek() == "^":
            self.take()
            exponent = self.argument()
        inner = self.primary() if self.peek() in _CLOSING else self.raised()
        return self.algebra.power(self.algebra.function(name, inner), exponent)

    def letter(self, token: str) -> Quotient:
        """A letter with its index, or a constant."""
        name = {"\\pi": "pi", "π": "pi"}.get(token, token)
        if name == "i":
            self.algebra.roots["i"] = (2, self.algebra.rational(-1))
        if self.peek() == "_":
            self.take()
            name += "_" + self.argument().key()
        return self.algebra.atom(name)


def _tokens(text: str) -> list[str]:
    """The tokens of a text, without what is there for the eye alone."""
    found, at = [], 0
    text = re.sub(r"\\[,;!: ]|\\quad|\\qquad|\$|~|\^\s*\{?\s*\\circ\s*\}?|°", " ", text).replace("√", "\\sqrt ").replace("\\%", "%")
    text = re.sub(r"(?<![\\a-zA-Z])(sqrt|pi|" + "|".join(sorted(_FUNCTIONS, key=len, reverse=True)) + r")(?![a-zA-Z])", r"\\\1 ", text)
    text = re.sub(r"\\sqrt\s*\(", r"\\sqrt(", text).translate(str.maketrans("−×·÷", "-**/")).rstrip()
    while at < len(text):
        token = _TOKEN.match(text, at)
        if token is None:
            raise Unreadable(f"{text[at]!r} is no sign of an expression")
        at = token.end()
        if token[1] not in _DROPPED:
            found.append(_SIGNS.get(token[1], token[1]))
    if not found or len(found) > TERMS:
        raise Unreadable("nothing, or too much")
    return found


def _factorial(number: Fraction | None) -> int:
    if number is None or number.denominator != 1 or not 0 <= number <= POWER:
        raise Unreadable("a factorial of no such number")
    found = 1
    for factor in range(2, int(number) + 1):
        found *= factor
    return found


def parts(text: str) -> tuple[str, list[str]]:
    """A list in brackets as its brackets and its entries; anything else as itself without brackets."""
    text = text.strip()
    bare = re.sub(r"\\left|\\right", "", text).replace("\\{", "{").replace("\\}", "}").strip()
    if len(bare) < 2 or bare[0] not in "([{" or bare[-1] not in ")]}":
        return "", [text]
    entries, depth, start = [], 0, 1
    for place, sign in enumerate(bare):
        depth += (sign in "([{") - (sign in ")]}")
        if depth == 0 and place < len(bare) - 1:
            return "", [text]
        if depth == 1 and sign == ",":
            entries.append(bare[start:place])
            start = place + 1
    if not entries:
        return "", [text]
    return bare[0] + bare[-1], [*entries, bare[start:-1]]


def readable(text: str) -> bool:
    """Whether a text is an expression, or a list of them."""
    try:
        for entry in parts(text)[1]:
            Reader(entry, Algebra()).whole()
    except (Unreadable, RecursionError, ZeroDivisionError):
        return False
    return True


def equal(one: str, two: str) -> bool:
    """Whether two texts say the same: expression by expression; sets in any order, other lists in theirs."""
    try:
        (left, firsts), (right, seconds) = parts(one), parts(two)
        if left != right or len(firsts) != len(seconds):
            return False
        algebra = Algebra()
        ours = [Reader(entry, algebra).whole() for entry in firsts]
        theirs = [Reader(entry, algebra).whole() for entry in seconds]
    except (Unreadable, RecursionError, ZeroDivisionError):
        return False
    if left == "{}":
        return all(any(_all_same(algebra, mine, other) for other in theirs) for mine in ours) and all(
            any(_all_same(algebra, mine, other) for mine in ours) for other in theirs
        )
    return all(_all_same(algebra, mine, other) for mine, other in zip(ours, theirs, strict=True))


def _all_same(algebra: Algebra, ours: list[Quotient], theirs: list[Quotient]) -> bool:
    return len(ours) == len(theirs) and all(algebra.same(mine, other) for mine, other in zip(ours, theirs, strict=True))
