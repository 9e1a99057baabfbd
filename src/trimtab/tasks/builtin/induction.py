"""Induction: "… lamp river stone … lamp river" → " stone".

What followed a word the first time follows it again, as in Olsson et al. 2022, "In-context learning and induction
heads" (arXiv 2209.11895). Words are common and in random order, so that nothing else tells which comes next. In the
corrupt prompt another word follows the first occurrence.
"""

from __future__ import annotations

import numpy as np

from trimtab.tasks.builtin._words import twins
from trimtab.tasks.example import Counterfactual
from trimtab.tasks.task import Task

WORDS = (
    "apple window river music doctor paper summer bridge orange silver market horse",
    "table garden winter letter planet kitchen yellow soldier butter island number ticket",
    "mountain pencil coffee brother engine flower camera village purple dinner story rabbit",
    "forest button teacher bottle ocean circle hammer morning green lawyer ladder sugar",
    "castle finger weather copper student pillow valley movie carpet dragon train lemon",
    "school rocket candle desert father banana mirror chicken uncle metal tower shirt",
    "hospital leather monkey shadow basket autumn prince cotton radio violin beach glass",
    "temple turtle pocket lunch sister hotel gold wagon powder jacket stream nurse",
    "church tiger ribbon potato captain blanket storm piano wheel cousin cheese black",
    "office eagle thunder salad farmer shoulder crystal lake guitar spring brush helmet",
    "library whale cloud bread pilot stomach marble harbor drum night rope chair",
    "museum spider rain honey artist elbow iron canyon flute evening bucket door",
    "theater snake snow pepper judge ankle diamond meadow trumpet noon shovel roof",
    "stadium goat wind soup miner chest steel cliff bell midnight axe floor",
    "factory duck fog rice sailor neck bronze cave song dawn needle wall",
    "prison bear frost corn baker thumb coal swamp dance week saw fence",
)
LENGTH = 9
EACH = 7


def induction() -> Task:
    """Seven sequences of each of 16 sets of words; a group is a set, and no word is in two."""
    rng = np.random.default_rng(0)
    examples: list[Counterfactual] = []
    for number, line in enumerate(WORDS):
        for _ in range(EACH):
            words = rng.permutation(line.split()).tolist()
            at = int(rng.integers(3, 7))
            start = int(rng.integers(1, at - 1))
            fields = {
                "before": " ".join(words[:at]),
                "first": words[at],
                "next": words[at + 1],
                "after": " ".join(words[at + 2 : LENGTH]),
                "again": " ".join(words[start:at]),
                "repeat": words[at],
            }
            examples.append(
                twins(
                    "{before} {first} {next} {after} {again} {repeat}",
                    fields,
                    {"next": words[LENGTH]},
                    (f" {words[at + 1]}",),
                    (f" {words[LENGTH]}",),
                    f"words {number}",
                    ("first", "next", "repeat"),
                )
            )
    return Task(
        "induction",
        tuple(examples),
        about="What followed a word the first time follows it again.",
        metric="logit_diff",
        poles=("followed before", "did not"),
        source="Olsson et al. 2022, arXiv 2209.11895",
    )
