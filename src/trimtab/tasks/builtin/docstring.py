'''Docstring: the parameter that comes next in a Python docstring, in the order of the definition.

    def port(self, load, size, files, last):
        """oil column piece

        :param load: crime population
        :param size: unit dark
        :param

asks for " files". Follows Heimersheim and Janiak 2023, "A circuit for Python docstrings in a 4-layer attention-only
transformer" (LessWrong). In the corrupt prompt the definition has the last two parameters the other way round.
'''

from __future__ import annotations

import numpy as np

from trimtab.tasks.builtin._words import twins
from trimtab.tasks.example import Counterfactual
from trimtab.tasks.task import Task

NAMES = (
    "load size files last",
    "name value index count",
    "path mode text line",
    "user host port key",
    "width height depth color",
    "start end step limit",
    "model data test batch",
    "image mask label score",
    "node edge graph tree",
    "title body author date",
    "price amount tax total",
    "source target group option",
    "speed angle force mass",
    "city state country street",
    "table column row field",
    "menu page item list",
    "time hour day month",
    "token word length shape",
)
FUNCTIONS = "run build send parse check update create handle convert process apply read"
WORDS = (
    "oil crime unit dark piece song water people season early glass wind paper river gold night small stone market "
    "green summer church bird power"
)
STYLES = (":param", "@param", ":arg")
EACH = 6


def docstring() -> Task:
    """Six orders of each of 18 sets of parameters; a group is a set, and no parameter is in two."""
    rng = np.random.default_rng(0)
    examples: list[Counterfactual] = []
    for number, line in enumerate(NAMES):
        for turn in range(EACH):
            a, b, c, d = rng.permutation(line.split()).tolist()
            mark = STYLES[turn % len(STYLES)]
            words = iter(rng.permutation(WORDS.split()).tolist())
            template = (
                f"def {rng.choice(FUNCTIONS.split())}(self, {{first}}, {{second}}, {{third}}, {{fourth}}):\n"
                f'    """{next(words)} {next(words)} {next(words)}\n\n'
                f"    {mark} {{first_said}}: {next(words)} {next(words)}\n"
                f"    {mark} {{second_said}}: {next(words)} {next(words)}\n"
                f"    {mark}"
            )
            examples.append(
                twins(
                    template,
                    {"first": a, "second": b, "third": c, "fourth": d, "first_said": a, "second_said": b},
                    {"third": d, "fourth": c},
                    (f" {c}",),
                    (f" {d}",),
                    f"names {number}",
                    ("first", "second", "third", "fourth", "first_said", "second_said"),
                )
            )
    return Task(
        "docstring",
        tuple(examples),
        about="The docstring names the parameters in the order of the definition.",
        metric="logit_diff",
        poles=("the next parameter", "the one after"),
        source="Heimersheim and Janiak 2023, LessWrong",
    )
