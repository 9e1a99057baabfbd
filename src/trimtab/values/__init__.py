"""The frozen values that every room speaks in: addresses, edits, scores, outcomes, and their files.

numpy only: no model, no torch. They can be printed, saved, loaded and compared.
"""

from trimtab.values.edit import (
    Affine,
    Bounds,
    Condition,
    Edit,
    Intervention,
    Noise,
    Probe,
    Ref,
    Rotation,
    WeightPatch,
)
from trimtab.values.lens import Lens
from trimtab.values.outcome import Outcome
from trimtab.values.provenance import Provenance
from trimtab.values.scope import Scope
from trimtab.values.scores import Comparison, Interval, Scores
from trimtab.values.site import SITES, Edge, Selection, Site, SiteKind, explain
from trimtab.values.span import Span

__all__ = [
    "SITES",
    "Affine",
    "Bounds",
    "Comparison",
    "Condition",
    "Edge",
    "Edit",
    "Interval",
    "Intervention",
    "Lens",
    "Noise",
    "Outcome",
    "Probe",
    "Provenance",
    "Ref",
    "Rotation",
    "Scope",
    "Scores",
    "Selection",
    "Site",
    "SiteKind",
    "Span",
    "WeightPatch",
    "explain",
]
