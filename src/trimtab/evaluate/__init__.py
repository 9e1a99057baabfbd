"""Evaluate: what an intervention does, to a task's number and to everything else, against controls.

`verify` puts the places that any locating method proposes to the test; `effects` is what interventions do to a task's
number.
"""

from trimtab.evaluate.effect import Effects, effects
from trimtab.evaluate.verify import verify

__all__ = ["Effects", "effects", "verify"]
