"""Indirect object identification: "When Mary and John went to the store, John gave a drink to" → " Mary".

The name that is not said again receives. Follows Wang et al. 2022, "Interpretability in the Wild" (arXiv 2211.00593),
with its two orders (ABBA, BABA). The corrupt prompt says the other name again, so that the same names are there and
the answer flips.
"""

from __future__ import annotations

import numpy as np

from trimtab.tasks.builtin._words import twins
from trimtab.tasks.example import Counterfactual
from trimtab.tasks.task import Task

NAMES = (
    "John James Robert Michael David William Richard Joseph Thomas Charles Daniel Matthew Mark Paul Andrew Kevin Brian "
    "George Peter Henry Mary Sarah Emma Anna Laura Lisa Jennifer Jessica Elizabeth Susan Karen Nancy Rachel Kate Alice "
    "Jane Julia Maria Helen Amy"
)
PLACES = "store park school office garden museum station library hospital restaurant market beach"
OBJECTS = "drink book ring letter ball key bag basket camera mirror necklace snack"
TEMPLATES = (
    "When [A] and [B] went to the {place}, {S2} gave a {object} to",
    "Then, [A] and [B] went to the {place}. {S2} gave a {object} to",
    "After [A] and [B] had a long argument at the {place}, {S2} handed a {object} to",
    "While [A] and [B] were working at the {place}, {S2} gave a {object} to",
    "Then, [A] and [B] had lunch at the {place}. Afterwards, {S2} offered a {object} to",
    "Once [A] and [B] got to the {place}, {S2} decided to give a {object} to",
    "The day [A] and [B] visited the {place}, {S2} passed a {object} to",
    "Friends since childhood, [A] and [B] met at the {place}. {S2} brought a {object} for",
    "As [A] and [B] were leaving the {place}, {S2} sold a {object} to",
    "Yesterday [A] and [B] were thinking about going to the {place}, and {S2} wanted to give a {object} to",
    "In the afternoon, [A] and [B] walked around the {place}, where {S2} showed a {object} to",
    "Because [A] and [B] wanted to leave the {place} early, {S2} threw a {object} to",
    "The {place} that [A] and [B] went to had a {object}. {S2} gave it to",
    "Last summer [A] and [B] often met at the {place}. One morning {S2} lent a {object} to",
    "Before [A] and [B] went home from the {place}, {S2} returned a {object} to",
    "It was raining when [A] and [B] reached the {place}, so {S2} gave a {object} to",
    "Everyone knew that [A] and [B] had met at the {place}. That evening {S2} sent a {object} to",
    "On their way to the {place}, [A] and [B] found a {object}, and {S2} handed it to",
    "At the {place}, [A] sat down next to [B]. A little later {S2} gave a {object} to",
    "Although [A] and [B] were both late for the {place}, {S2} carried a {object} over to",
    "Last winter [A] and [B] cleaned the {place} together. When that was done, {S2} gave a {object} to",
    "Nobody else was in the {place} when [A] saw [B] there, and {S2} offered a {object} to",
    "After a while [A] and [B] stopped talking in the {place}. Without a word {S2} passed a {object} to",
    "This week [A] and [B] are looking after the {place}. Today {S2} has to give a {object} to",
)
EACH = 6


def ioi() -> Task:
    """Six examples of each of 24 templates, half of them ABBA; a group is a template."""
    rng = np.random.default_rng(0)
    examples: list[Counterfactual] = []
    for number, template in enumerate(TEMPLATES):
        for turn in range(EACH):
            order = ("{IO}", "{S1}") if turn % 2 == 0 else ("{S1}", "{IO}")
            io, subject = rng.choice(NAMES.split(), 2, replace=False).tolist()
            words = {
                "IO": io,
                "S1": subject,
                "S2": subject,
                "place": rng.choice(PLACES.split()),
                "object": rng.choice(OBJECTS.split()),
            }
            examples.append(
                twins(
                    template.replace("[A]", order[0]).replace("[B]", order[1]),
                    words,
                    {"S2": io},
                    (f" {io}",),
                    (f" {subject}",),
                    f"template {number}",
                    ("IO", "S1", "S2"),
                )
            )
    return Task(
        "ioi",
        tuple(examples),
        about="Of two people the one who is not named again receives: which name comes last.",
        metric="logit_diff",
        poles=("indirect object", "subject"),
        instruction="Nobody gives anything to himself.",
        source="Wang et al. 2022, arXiv 2211.00593",
    )
