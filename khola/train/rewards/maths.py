"""Answers of mathematics: found in the text, made plain, compared as text, as numbers, and as expressions in a process that can be killed.

Source   the order of what is looked for, and of the comparisons: practice of open reproductions of arXiv:2501.12948, section 2.2.2.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path

from khola.errors import BadRow
from khola.evals.sandbox.limits import Limits
from khola.evals.sandbox.pool import Pool
from khola.train.rewards import expression
from khola.train.rewards.reward import Reward, Row, text_of

LONGEST = 400
"""Characters of an answer that is worth comparing."""
TAIL = 20_000
"""Characters at the end of a text in which its answer is looked for."""
_MARKS = 50
_SOURCE = Path(expression.__file__).read_text(encoding="utf-8")
_STATED = re.compile(
    r"(?:(?:final\s+)?answer(?:\s+is)?\s*[::=]?|####|উত্তর\s*(?:হলো|হল|হচ্ছে)?\s*[::=]?)\s*\**\s*([^\n]{1,400})", re.IGNORECASE
)
_NUMBER = re.compile(r"[-−]?(?:\d{1,3}(?:,\d{2,3})+|\d+)(?:\.\d+)?(?:\s*/\s*\d+)?%?")
_UNITS = re.compile(r"\\(?:text|mathrm|mbox|textbf|mathbf)\s*\{([^{}]*)\}")
_DIGITS = str.maketrans("০১২৩৪৫৬৭৮৯٠١٢٣٤٥٦٧٨٩०१२३४५६७८९", "0123456789" * 3)
_PLAIN = re.compile(r"([-+]?)\s*(\d*\.?\d+|\d+\.?)(?:\s*/\s*(\d+))?(%?)")


@dataclass(frozen=True, kw_only=True)
class Maths:
    """How answers of mathematics are judged."""

    key: str = "answer"
    """Key of a row under which the right answer stands; of a longer solution its final answer is taken."""
    right: float = 1.0
    """Worth of a right answer."""
    wrong: float = 0.0
    """Worth of a wrong answer."""
    tolerance: float = 1e-6
    """Relative difference up to which two numbers count as equal when one of them is written with a decimal point; 0 asks for equality."""
    boxed: bool = False
    r"""Whether the answer must stand in \boxed{}; else a stated answer, and last the last number of the text, count too."""
    limits: Limits = field(default_factory=lambda: Limits(cpu_s=1, wall_s=2.0, memory_bytes=256 << 20))
    """What comparing two expressions may take."""


def maths(config: Maths, pool: Pool) -> Reward:
    """A reward for answers of mathematics.

    Args:
        config: how they are judged.
        pool: where expressions are compared; our own program runs there, so layers do not matter, but that it can be killed.
    """

    def reward(prompt: str, answer: str, row: Row) -> float:
        gold = gold_of(row, config)
        found = boxed(answer) if config.boxed else final_answer(answer)
        return config.right if found is not None and same(found, gold, config, pool) else config.wrong

    return reward


def gold_of(row: Row, config: Maths) -> str:
    """The right answer of a row.

    Raises:
        BadRow: there is none, or none that can be read; so check rows before training.
    """
    text = text_of(row, config.key)
    gold = final_answer(text) if "\n" in text or "####" in text or "\\boxed" in text else text.strip()
    if (
        gold is None
        or len(gold) > LONGEST
        or not (number_of(plain(gold)) is not None or expression.readable(plain(gold)) or _is_word(gold))
    ):
        raise BadRow("the right answer of a row cannot be read: {gold}", gold=text[:200])
    return gold


def _is_word(text: str) -> bool:
    """A right answer may be a word or two, such as a name or a day; those are compared as text."""
    return bool(re.fullmatch(r"[\w\s'’.-]{1,60}", plain(text)))


def final_answer(text: str) -> str | None:
    r"""The last `\boxed{}` of a text, else the last stated answer, else the last number; None when there is nothing."""
    found = boxed(text)
    if found is not None:
        return found
    text = re.sub(r"\s{2,}", lambda run: "\n" if "\n" in run[0] else " ", text[-TAIL:])
    stated = [match[1].strip() for match in _STATED.finditer(text) if match[1].strip()]
    if stated:
        line = stated[-1].strip("*` ").rstrip(".।").strip()
        if number_of(plain(line)) is not None or expression_like(line):
            return line
        inside = _NUMBER.findall(line.translate(_DIGITS))
        return inside[-1] if inside else line
    numbers = _NUMBER.findall(text.translate(_DIGITS))
    return numbers[-1] if numbers else None


def expression_like(line: str) -> bool:
    """Whether a stated line is an expression and not a sentence."""
    return len(line) <= LONGEST and not re.search(r"[^\W\d_]{2,}\s+[^\W\d_]{2,}", re.sub(r"\\[a-zA-Z]+", "", line))


def boxed(text: str) -> str | None:
    r"""What stands in the last `\boxed{}`; None without one that is closed."""
    text = text[-TAIL:]
    for mark in list(re.finditer(r"\\f?boxed *\{", text))[-_MARKS:][::-1]:
        depth = 1
        for place in range(mark.end(), min(len(text), mark.end() + 4 * LONGEST)):
            depth += (text[place] == "{") - (text[place] == "}")
            if not depth:
                return text[mark.end() : place].strip()
    return None


def plain(text: str) -> str:
    """A text without what does not matter: other digits, separators of thousands, units, currencies, spaces, signs for the eye."""
    text = text.translate(_DIGITS).strip().strip("*`").replace("\\$", "").replace("$", "").replace("\\%", "%")
    text = re.sub(r"[€£₹৳]", "", text).replace("\\!", "").replace("{,}", ",").replace("−", "-")
    text = (
        re.sub(r"(?<=\d),(?=\d{3}(?!\d))|(?<=\d),(?=\d{2},\d)", "", text)
        if re.fullmatch(r"[-+]?\s*\d{1,3}(,\d{2,3})+(\.\d+)?%?.*", text)
        else text
    )
    alone = _UNITS.sub("", text).strip()
    text = alone or _UNITS.sub(r"\1", text)
    text = re.sub(r"(?<=\d)\s+[a-zA-Zঀ-৿][\w./²³^-]*(\s+[a-zA-Zঀ-৿]+)*$", "", text.strip().rstrip(".।"))
    return re.sub(r"\s+", " ", text).strip()


def number_of(text: str) -> tuple[Fraction, bool, bool] | None:
    """A plain number, whether it has a decimal point, and whether it is a percentage; None when it is no plain number."""
    found = _PLAIN.fullmatch(text) if len(text) <= LONGEST else None
    if found is None or (found[3] is not None and int(found[3]) == 0):
        return None
    value = Fraction(found[2].rstrip(".")) / Fraction(found[3] or 1)
    return (-value if found[1] == "-" else value), "." in found[2], bool(found[4])


def same(answer: str, gold: str, config: Maths, pool: Pool) -> bool:
    """Whether an answer is the right one."""
    if len(answer) > LONGEST:
        return False
    ours, theirs = plain(answer), plain(gold)
    if ours == theirs or (ours.lower() == theirs.lower() and len(ours) > 1):
        return True
    one, two = number_of(ours), number_of(theirs)
    if one is not None and two is not None:
        return _same_number(one, two, config.tolerance)
    if _is_word(gold) and not expression.readable(theirs):
        return False
    with pool.borrowed() as sandbox:
        outcome = sandbox.called(_SOURCE, "equal", ours, theirs, limits=config.limits)
    return outcome.kind == "passed" and outcome.value is True


def _same_number(one: tuple[Fraction, bool, bool], two: tuple[Fraction, bool, bool], tolerance: float) -> bool:
    """Equal as they stand; a percent sign that only one of them has may mean a hundredth or a unit."""
    near = Fraction(tolerance) if one[1] or two[1] else Fraction(0)
    pairs = [(one[0], two[0])]
    if one[2] != two[2]:
        pairs.append((one[0] / 100 if one[2] else one[0], two[0] / 100 if two[2] else two[0]))
    return any(abs(ours - theirs) <= near * max(abs(ours), abs(theirs)) for ours, theirs in pairs)
