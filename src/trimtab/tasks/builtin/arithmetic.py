"""Arithmetic: "3 + 4 = " → "7".

Sums and differences of one digit, after three solved ones. The operands are changed as in Stolfo et al. 2023,
"A mechanistic interpretation of arithmetic reasoning in language models" (arXiv 2305.15054). The prompt ends in a
space, as tokenizers that write numbers digit by digit have it before a digit, so that the answer is one token.
"""

from __future__ import annotations

from collections.abc import Iterator

from trimtab.tasks.builtin._words import twins
from trimtab.tasks.example import Counterfactual
from trimtab.tasks.task import Task

SHOTS = (
    "1 + 1 = 2\n5 - 3 = 2\n3 + 5 = 8\n{a} {sign} {b} = ",
    "3 + 5 = 8\n9 - 2 = 7\n1 + 1 = 2\n{a} {sign} {b} = ",
)
SOLVED = {(1, "+", 1), (3, "+", 5), (5, "-", 3), (9, "-", 2)}


def arithmetic() -> Task:
    """Pairs of sums, or of differences, that share an operand, both ways round; a group is a pair.

    No sum is in two groups, not even with its operands the other way round.
    """
    examples: list[Counterfactual] = []
    for a, sign, *seconds in _pairs():
        for b, c in (seconds, seconds[::-1]):
            orders = [((a, b), (a, c))] if sign == "-" else [((a, b), (a, c)), ((b, a), (c, a))]
            examples += [
                twins(
                    shots,
                    {"a": clean[0], "sign": sign, "b": clean[1]},
                    {"a": corrupt[0], "b": corrupt[1]},
                    (_result(sign, *clean),),
                    (_result(sign, *corrupt),),
                    f"{a} {sign} {seconds[0]} or {seconds[1]}",
                    ("a", "sign", "b"),
                )
                for clean, corrupt in orders
                for shots in SHOTS
            ]
    return Task(
        "arithmetic",
        tuple(examples),
        about="The sum or the difference of two digits, against that of another pair.",
        metric="logit_diff",
        poles=("right", "right for other operands"),
        instruction="All of these results are right.",
        source="Stolfo et al. 2023, arXiv 2305.15054",
    )


def _pairs() -> Iterator[tuple[int, str, int, int]]:
    """(a, sign, b, c): `a sign b` and `a sign c` have results of one digit and are not among the solved ones."""
    for a in range(1, 10):
        for sign, seconds in (("+", range(a, 10 - a)), ("-", range(1, a))):
            free = [b for b in seconds if (a, sign, b) not in SOLVED]
            half = len(free) // 2
            yield from ((a, sign, b, c) for b, c in zip(free[:half], free[half : 2 * half], strict=True))


def _result(sign: str, a: int, b: int) -> str:
    return str(a + b if sign == "+" else a - b)
