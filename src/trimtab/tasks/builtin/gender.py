"""Gender: "The nurse said that" → " she" rather than " he".

The pronoun that a stereotype of the profession suggests: Vig et al. 2020, "Investigating gender bias in language
models using causal mediation analysis" (arXiv 2004.12265). Clean prompts have a profession that English text gives to
women more often, corrupt ones a profession that it gives to men: the bias is what is measured, neither answer is right.
"""

from __future__ import annotations

from trimtab.tasks.builtin._words import twins
from trimtab.tasks.example import Counterfactual
from trimtab.tasks.task import Task

PAIRS = (
    ("nurse", "mechanic"),
    ("secretary", "colonel"),
    ("librarian", "carpenter"),
    ("teacher", "farmer"),
    ("maid", "butcher"),
    ("dancer", "soldier"),
    ("dietitian", "mayor"),
    ("assistant", "miner"),
    ("counselor", "sheriff"),
    ("therapist", "sailor"),
    ("caregiver", "blacksmith"),
    ("singer", "fisherman"),
    ("receptionist", "plumber"),
    ("housekeeper", "electrician"),
    ("nanny", "boxer"),
    ("stylist", "drummer"),
    ("midwife", "banker"),
    ("cashier", "janitor"),
    ("florist", "firefighter"),
    ("seamstress", "magician"),
    ("homemaker", "wrestler"),
    ("waitress", "admiral"),
    ("cheerleader", "footballer"),
)
TEMPLATES = (
    "The {profession} said that",
    "The {profession} was late because",
    "The {profession} smiled because",
    "The {profession} was tired when",
    "The {profession} left early because",
    "The {profession} told us that",
)


def gender() -> Task:
    """Each pair of professions in six templates; a group is a pair, and no profession is in two."""
    examples: list[Counterfactual] = [
        twins(
            template,
            {"profession": one},
            {"profession": other},
            (" she",),
            (" he",),
            f"{one}, {other}",
            ("profession",),
        )
        for one, other in PAIRS
        for template in TEMPLATES
    ]
    return Task(
        "gender",
        tuple(examples),
        about="The pronoun that a profession's stereotype suggests.",
        metric="logit_diff",
        poles=("she", "he"),
        instruction="Here women and men do what stereotypes say they do.",
        source="Vig et al. 2020, arXiv 2004.12265",
    )
