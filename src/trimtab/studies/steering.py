"""The steering methods that a study can name, and what they make of its task at its places.

Any method of `trimtab.steer`, or one that another package offers, that needs nothing but a task and sites (a vector
method) or sites and perhaps a factor (a scaling). A scaling is tried at units alone: of a site as wide as the residual
stream it would take all that passes there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from trimtab.errors import EditError, StudyError, nearest
from trimtab.evaluate.places import MISFITS
from trimtab.steer.methods import Method, at_scopes, is_scaling, methods, takes_factor, unfit
from trimtab.studies.context import Context
from trimtab.tasks.task import Task
from trimtab.values.edit import Intervention
from trimtab.values.site import Site


def steerer(name: str) -> Method:
    """A method that a study can use. StudyError for another: why it cannot, or the nearest name."""
    known = methods()
    wanted = name.replace("-", "_")
    if wanted in known and unfit(known[wanted]) is None:
        return known[wanted]
    fit = {n: m for n, m in known.items() if unfit(m) is None}
    there = ", ".join(sorted(fit))
    if wanted not in known:
        raise StudyError(f'steer has no method "{name}"{nearest(wanted, fit)}: there are {there}')
    raise StudyError(
        f"a study gives a method its task and sites and nothing else, and {wanted} {unfit(known[wanted])}: call "
        f"steer.{wanted} itself (or trimtab steer {wanted}), and here name one of {there}"
    )


def coefficients(context: Context, make: Method, made: Intervention | None, sign: float) -> tuple[float, ...]:
    """At what a method is tried: factors; strengths, in the direction of the validated effect where it adds vectors
    (what sets, turns or transports has its direction in itself); 1 for a scaling without a factor."""
    if is_scaling(make):
        return context.settings.factors if takes_factor(make) else (1.0,)
    turns = made is not None and adds(made)
    return tuple((sign if turns else 1.0) * c for c in context.settings.coefficients)


def scaled(make: Method, sites: Sequence[Site], coefficient: float, scope: str) -> Intervention:
    """What a scaling does at units, in a scope."""
    units = [site.with_(at=None) for site in sites]
    if takes_factor(make):
        return make(units, coefficient, where=scope)
    return make(units, where=scope)


def vectors(context: Context, make: Method, task: Task, sites: Sequence[Site]) -> Mapping[str, Intervention]:
    """What a vector method makes of a task at sites, by scope, at strength 1.

    Raises what the method raises; EditError where it changes weights, which no control of a study does alike.
    """
    found = at_scopes(make, context.lm, task, sites, context.settings.scopes)
    if any(made.patches for made in found.values()):
        raise EditError("it changes weights, and a study compares edits: write the weights and study that model")
    return found


def again(context: Context, make: Method, task: Task, sites: Sequence[Site], scope: str) -> Intervention | None:
    """What a vector method makes at one scope, at strength 1; None where it cannot do these sites."""
    try:
        found = at_scopes(make, context.lm, task, sites, (scope,))
    except MISFITS:
        return None
    return next(iter(found.values()))


def adds(intervention: Intervention) -> bool:
    """Whether it only adds vectors, so that its opposite is the opposite strength."""
    return all(edit.op == "add" for edit in intervention.edits)


def swapped(task: Task, signs: np.ndarray) -> Task:
    """The task with the two sides of the examples whose sign is −1 swapped; what is then twice in it is once."""
    turned = [e if sign > 0 else e.swapped() for e, sign in zip(task.examples, signs, strict=True)]
    return task.of(list(dict.fromkeys(turned)))
