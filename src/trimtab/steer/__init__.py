"""Steer: interventions made from what was located, and the search for the one to keep.

    from trimtab import steer

    steer.difference_of_means(lm, task, "L19.resid_post")
    steer.scale(scores.top(5), 0)

Every function returns an `Intervention`, which any run, generation or sweep takes.
"""

from trimtab.steer.amplitude import scale
from trimtab.steer.search import grid, pareto_front
from trimtab.steer.vectors import difference_of_means, vector_edits

__all__ = ["difference_of_means", "grid", "pareto_front", "scale", "vector_edits"]
