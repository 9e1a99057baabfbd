"""Capitals: "The capital of France is" → " Paris".

Recall of a fact about the subject, as in Meng et al. 2022, "Locating and editing factual associations in GPT"
(arXiv 2202.05262), and Geva et al. 2023 (arXiv 2304.14767). The corrupt prompt names another country.
"""

from __future__ import annotations

from trimtab.tasks.builtin._words import twins
from trimtab.tasks.example import Counterfactual
from trimtab.tasks.task import Task

PAIRS = (
    (("France", "Paris"), ("Egypt", "Cairo")),
    (("Italy", "Rome"), ("Japan", "Tokyo")),
    (("Germany", "Berlin"), ("Peru", "Lima")),
    (("Spain", "Madrid"), ("Iran", "Tehran")),
    (("China", "Beijing"), ("Austria", "Vienna")),
    (("Russia", "Moscow"), ("Cuba", "Havana")),
    (("Greece", "Athens"), ("Kenya", "Nairobi")),
    (("Ireland", "Dublin"), ("Chile", "Santiago")),
    (("Poland", "Warsaw"), ("Canada", "Ottawa")),
    (("Portugal", "Lisbon"), ("Iraq", "Baghdad")),
    (("England", "London"), ("Afghanistan", "Kabul")),
    (("Scotland", "Edinburgh"), ("Australia", "Canberra")),
    (("Sweden", "Stockholm"), ("Jamaica", "Kingston")),
    (("Norway", "Oslo"), ("Syria", "Damascus")),
    (("Denmark", "Copenhagen"), ("Tunisia", "Tunis")),
    (("Finland", "Helsinki"), ("Belgium", "Brussels")),
    (("Hungary", "Budapest"), ("Wales", "Cardiff")),
    (("Bulgaria", "Sofia"), ("Switzerland", "Bern")),
    (("South Korea", "Seoul"), ("New Zealand", "Wellington")),
    (("Turkey", "Ankara"), ("Thailand", "Bangkok")),
    (("Romania", "Bucharest"), ("Vietnam", "Hanoi")),
    (("Nigeria", "Abuja"), ("Serbia", "Belgrade")),
)
TEMPLATES = (
    "The capital of {subject} is",
    "The capital city of {subject} is called",
    "Q: What is the capital of {subject}?\nA: The answer is",
)


def capitals() -> Task:
    """Both directions of each pair of countries in three templates; a group is a pair, and no country is in two."""
    examples: list[Counterfactual] = []
    for one, other in PAIRS:
        for (country, capital), (foreign, distractor) in ((one, other), (other, one)):
            examples += [
                twins(
                    template,
                    {"subject": country},
                    {"subject": foreign},
                    (f" {capital}",),
                    (f" {distractor}",),
                    f"{one[0]}, {other[0]}",
                    ("subject",),
                )
                for template in TEMPLATES
            ]
    return Task(
        "capitals",
        tuple(examples),
        about="The capital of the country that is named, against that of another.",
        metric="logit_diff",
        poles=("its capital", "another capital"),
        instruction="Everything that follows is correct.",
        source="Meng et al. 2022, arXiv 2202.05262",
    )
