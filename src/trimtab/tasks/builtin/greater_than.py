"""Greater-than: "The war lasted from the year 1749 to the year 17" → a tens digit above 4.

Follows Hanna et al. 2023, "How does GPT-2 compute greater-than?" (arXiv 2305.00586), for tokenizers that write numbers
digit by digit, so that one digit is predicted. First years end in 9, which leaves no digit in doubt: no year of the
1740s follows 1749. The corrupt prompt has 1709, after which the digits that were too low, the distractors, are right as
well; 0 is neither, since it is wrong in both.
"""

from __future__ import annotations

import numpy as np

from trimtab.tasks.builtin._words import twins
from trimtab.tasks.example import Counterfactual
from trimtab.tasks.task import Task

NOUNS = (
    "war trial conflict siege voyage expedition project campaign dispute reign famine drought crisis alliance treaty "
    "tour journey migration plague occupation rebellion friendship marriage partnership"
)
TEMPLATES = (
    "The {noun} lasted from the year {century}{tens}9 to the year {prefix}",
    "The {noun} began in {century}{tens}9 and ended in {prefix}",
    "The {noun} started in the year {century}{tens}9 and was over in the year {prefix}",
    "The {noun} ran from {century}{tens}9 to {prefix}",
    "The {noun} of {century}{tens}9-{prefix}",
)
CENTURIES = range(12, 19)
TENS = range(2, 9)


def greater_than() -> Task:
    """Five examples of each of 24 nouns, one for each template; a group is a noun."""
    rng = np.random.default_rng(0)
    examples: list[Counterfactual] = []
    for noun in NOUNS.split():
        tens = rng.choice(TENS, len(TEMPLATES), replace=False).tolist()
        for template, ten in zip(TEMPLATES, tens, strict=True):
            century = int(rng.choice(CENTURIES))
            examples.append(
                twins(
                    template,
                    {"noun": noun, "century": century, "tens": ten, "prefix": century},
                    {"tens": 0},
                    tuple(str(digit) for digit in range(ten + 1, 10)),
                    tuple(str(digit) for digit in range(1, ten + 1)),
                    noun,
                    ("noun", "century", "tens", "prefix"),
                )
            )
    return Task(
        "greater-than",
        tuple(examples),
        about="What began in a year ends in a later one: the tens digit that comes next is a greater one.",
        metric="logit_diff",
        poles=("later", "not later"),
        instruction="Everything ends later than it begins.",
        source="Hanna et al. 2023, arXiv 2305.00586",
    )
