"""Colours: "… my ball is red, my cup is blue and my hat is green. Please remember that my cup is" → " blue".

Looking up what was said of an object: "reasoning about colored objects" of BIG-bench (Srivastava et al. 2022, arXiv
2206.04615), whose circuit Merullo et al. 2023 compare with that of IOI (arXiv 2310.08744). In the corrupt prompt two
objects have changed colours.
"""

from __future__ import annotations

import numpy as np

from trimtab.tasks.builtin._words import twins
from trimtab.tasks.example import Counterfactual
from trimtab.tasks.task import Task

COLOURS = "red blue green yellow black white brown purple pink gold"
OBJECTS = (
    "ball cup hat",
    "book pen bag",
    "box car coat",
    "shirt shoe chair",
    "lamp plate bowl",
    "spoon fork knife",
    "phone watch ring",
    "key coin card",
    "bottle candle clock",
    "brush towel blanket",
    "pillow belt sock",
    "drum guitar kite",
    "doll boat bike",
    "flower leaf stone",
    "notebook pencil ribbon",
    "basket bucket hammer",
)
TEMPLATES = (
    ("my {o} is {c}", "You should know that {items}. Please remember that my {object} is"),
    ("the {o} is {c}", "Tom told me that {items}. I agree with Tom that the {object} is"),
    ("the {o} was {c}", "In the old picture {items}. In the new picture, too, the {object} was"),
    ("the {o} was painted {c}", "First {items}. This means that the {object} was painted"),
)
EACH = 8


def colours() -> Task:
    """Eight examples of each of 16 sets of objects; a group is a set, and no object is in two."""
    rng = np.random.default_rng(0)
    examples: list[Counterfactual] = []
    for line in OBJECTS:
        for turn in range(EACH):
            objects = rng.permutation(line.split()).tolist()
            colours = rng.choice(COLOURS.split(), 3, replace=False).tolist()
            asked, other = rng.permutation(3)[:2].tolist()
            phrase, sentence = TEMPLATES[turn % len(TEMPLATES)]
            slots = {asked: ("{item}", "{colour}"), other: (objects[other], "{other}")}
            said = [slots.get(i, (objects[i], colours[i])) for i in range(3)]
            one, two, three = (phrase.format(o=thing, c=colour) for thing, colour in said)
            examples.append(
                twins(
                    sentence.replace("{items}", f"{one}, {two} and {three}"),
                    {
                        "item": objects[asked],
                        "colour": colours[asked],
                        "other": colours[other],
                        "object": objects[asked],
                    },
                    {"colour": colours[other], "other": colours[asked]},
                    (f" {colours[asked]}",),
                    (f" {colours[other]}",),
                    line,
                    ("item", "colour", "other", "object"),
                )
            )
    return Task(
        "colours",
        tuple(examples),
        about="The colour that was said of the object asked for, against that of another object.",
        metric="logit_diff",
        poles=("its colour", "another's colour"),
        instruction="Nothing here changes its colour.",
        source="Merullo et al. 2023, arXiv 2310.08744",
    )
