"""Locating methods, one file per family: plain functions from a model and a task or prompts to a value.

`magnitude_contrast`, `activation_magnitude`, `attribution_patching` and `probe` screen; `patching`, `ablation` and
`shift` intervene, exactly. All of these give `Scores` for every example, from (lm, task, sites). `logit_lens` and
`direct_logit_attribution` read single prompts.
"""

from trimtab.locate.ablation import ablation
from trimtab.locate.attribution import Attribution, direct_logit_attribution
from trimtab.locate.attribution_patching import attribution_patching
from trimtab.locate.lens import logit_lens
from trimtab.locate.magnitude import activation_magnitude, magnitude_contrast
from trimtab.locate.patching import Normalised, normalised, patching, total_effect
from trimtab.locate.probing import ProbeResult, probe, probe_accuracy
from trimtab.locate.shift import shift

__all__ = [
    "Attribution",
    "Normalised",
    "ProbeResult",
    "ablation",
    "activation_magnitude",
    "attribution_patching",
    "direct_logit_attribution",
    "logit_lens",
    "magnitude_contrast",
    "normalised",
    "patching",
    "probe",
    "probe_accuracy",
    "shift",
    "total_effect",
]
