"""Agreement: "The keys to the cabinet" → " are", not " is".

The verb agrees with its subject and not with the noun beside it (the attractor), which has the same number in half of
the examples: Linzen et al. 2016, "Assessing the ability of LSTMs to learn syntax-sensitive dependencies"
(arXiv 1611.01368); as counterfactual pairs in Finlayson et al. 2021 (arXiv 2106.06087). The corrupt prompt has the
subject in the singular.
"""

from __future__ import annotations

import numpy as np

from trimtab.tasks.builtin._words import twins
from trimtab.tasks.example import Counterfactual
from trimtab.tasks.task import Task

SUBJECTS = (
    "key label picture book car teacher author student doctor friend window dog farmer pilot manager lawyer player "
    "artist machine poster report letter guard painting"
)
ATTRACTORS = (
    "cabinet garden tree river bridge house table door customer parent singer statue chair boat ship building horse "
    "bird flower mountain computer road"
)
TEMPLATES = (
    "The {subject} near the {attractor}",
    "The {subject} behind the {attractor}",
    "The {subject} with the {attractor}",
    "The {subject} next to the {attractor}",
    "I think that the {subject} beside the {attractor}",
    "As everyone knows, the {subject} close to the {attractor}",
)


def agreement() -> Task:
    """Six examples of each of 24 subjects, one for each template; a group is a subject."""
    rng = np.random.default_rng(0)
    examples: list[Counterfactual] = []
    for subject in SUBJECTS.split():
        attractors = rng.choice(ATTRACTORS.split(), len(TEMPLATES), replace=False).tolist()
        ends = rng.permutation(["", "s"] * (len(TEMPLATES) // 2)).tolist()
        for template, attractor, end in zip(TEMPLATES, attractors, ends, strict=True):
            examples.append(
                twins(
                    template,
                    {"subject": f"{subject}s", "attractor": attractor + end},
                    {"subject": subject},
                    (" are", " were"),
                    (" is", " was"),
                    subject,
                    ("subject", "attractor"),
                )
            )
    return Task(
        "agreement",
        tuple(examples),
        about="The verb has the number of its subject, whatever noun stands between them.",
        metric="logit_diff",
        poles=("plural", "singular"),
        instruction="The grammar of every sentence here is correct.",
        source="Linzen et al. 2016, arXiv 1611.01368",
    )
