"""Evaluate: what an intervention does, to a task's number and to everything else, against controls.

`verify` puts the places that any locating method proposes to the test; `effects` is what interventions do to a task's
number, `propensity` how readily they move it; `robustness`, `entanglement` and `ablation_study` are the survey's checks
of a claim; `generations`, `fluency` and the rest judge what is written.
"""

from trimtab.evaluate.ablation_study import ablation_study
from trimtab.evaluate.effect import Effects, effects
from trimtab.evaluate.entanglement import entanglement
from trimtab.evaluate.fluency import distinct, loops
from trimtab.evaluate.generation import generations, lexicon_share, yes_no
from trimtab.evaluate.over_refusal import over_refusal
from trimtab.evaluate.propensity import propensity
from trimtab.evaluate.robustness import robustness
from trimtab.evaluate.verify import verify

__all__ = [
    "Effects",
    "ablation_study",
    "distinct",
    "effects",
    "entanglement",
    "generations",
    "lexicon_share",
    "loops",
    "over_refusal",
    "propensity",
    "robustness",
    "verify",
    "yes_no",
]
