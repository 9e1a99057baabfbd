"""The frozen values that every room speaks in: addresses, edits, scores, outcomes, and their files.

numpy only: no model, no torch. They can be printed, saved, loaded and compared.
"""

from trimtab.values.audit import Audit
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
from trimtab.values.linear_probe import LinearProbe
from trimtab.values.lowrank import LowRank
from trimtab.values.massive import MassiveActivations
from trimtab.values.monitor import Calibration, GroupReport, Monitor, MonitorReport
from trimtab.values.outcome import Outcome
from trimtab.values.patchscope import Patchscope
from trimtab.values.provenance import Provenance
from trimtab.values.roles import RoleGraph, RoleTable
from trimtab.values.scope import Scope
from trimtab.values.scores import AnyScores, Comparison, Interval, Scores
from trimtab.values.site import SITES, Edge, Selection, Site, SiteKind, explain
from trimtab.values.span import Span
from trimtab.values.token_scores import TokenScores
from trimtab.values.tuned_lens import TunedLens
from trimtab.values.verification import AuditSample, Verification
from trimtab.values.watched import Watched

__all__ = [
    "SITES",
    "Affine",
    "AnyScores",
    "Audit",
    "AuditSample",
    "Bounds",
    "Calibration",
    "Comparison",
    "Condition",
    "Edge",
    "Edit",
    "GroupReport",
    "Interval",
    "Intervention",
    "Lens",
    "LinearProbe",
    "LowRank",
    "MassiveActivations",
    "Monitor",
    "MonitorReport",
    "Noise",
    "Outcome",
    "Patchscope",
    "Probe",
    "Provenance",
    "Ref",
    "RoleGraph",
    "RoleTable",
    "Rotation",
    "Scope",
    "Scores",
    "Selection",
    "Site",
    "SiteKind",
    "Span",
    "TokenScores",
    "TunedLens",
    "Verification",
    "Watched",
    "WeightPatch",
    "explain",
]
