"""Stage 3, steer: interventions at the validated places, each at several coefficients and scopes, and the one to keep.

A method of `steer` that takes a model and a task makes a vector, tried at the settings' coefficients at one wide site,
or at all validated units of a kind at once. A method that takes a `factor` scales such units. New methods of these two
shapes need no change here.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence

from trimtab import steer
from trimtab.errors import StudyError
from trimtab.steer.search import Proposal, grid
from trimtab.studies.context import Context, method
from trimtab.studies.screen import is_wide
from trimtab.values.edit import Intervention
from trimtab.values.findings import Search, Validation
from trimtab.values.scope import Scope
from trimtab.values.site import Site

UNITS = 12
"""Validated units of a kind that one intervention takes at most."""


def search(context: Context, validation: Validation) -> Search:
    """Effect on the validation part against KL on neutral text, for every method, place, scope and coefficient.

    As many proposals as half of the budget pays for, the place of largest validated effect first; StudyError where
    that is not even one point.
    """
    settings = context.settings
    context.report("making interventions", 0.0)
    proposals = _affordable(context, list(_proposals(context, validation)))
    if not proposals:
        return Search(
            (),
            "nothing was validated, so nothing was searched",
            settings.kl_limit,
            validation.unit,
            None,
            Intervention(),
            validation.examples,
        )
    return grid(
        context.lm,
        context.validation,
        proposals,
        context.passages,
        limit=settings.kl_limit,
        length=settings.search_tokens,
        progress=context.step("effect and cost of every point", 0.15, 1.0),
    )


def _proposals(context: Context, validation: Validation) -> Iterator[Proposal]:
    """What is tried, in the order of validated effect."""
    settings = context.settings
    places = _places(context, validation)
    for name in settings.steerers:
        make = method(steer, name)
        scales = is_scaling(make)
        for sites, sign in places:
            if scales:
                if not is_wide(sites[0]):
                    units = [site.with_(at=None) for site in sites]
                    yield Proposal(
                        name, _listed(units), "all", settings.factors, lambda c, m=make, s=units: m(s, c, where="all")
                    )
                continue
            label = _listed(sites)  # with the positions that the vector is read at; the scope is where it is added
            made = make(context.lm, context.parts.train, [str(site) for site in sites], where=settings.scopes[0])
            for scope in settings.scopes:
                base = made.with_(edits=tuple(edit.with_(where=Scope.parse(scope)) for edit in made.edits))
                coefficients = tuple(sign * c for c in settings.coefficients)
                yield Proposal(name, label, scope, coefficients, lambda c, b=base: b * c)


def is_scaling(make: Callable[..., object]) -> bool:
    """Whether a method of `steer` takes sites and a factor; else it takes a model, a task and sites."""
    return "factor" in inspect.signature(make).parameters


def _places(context: Context, validation: Validation) -> list[tuple[list[Site], float]]:
    """Where to intervene, with the sign of the validated effect: wide sites one by one, units of a kind together.

    Sites keep the positions at which they were validated: a vector is what the two sides differ by there.
    """
    found: list[tuple[list[Site], float]] = []
    units: dict[str, list[Site]] = {}
    taken: set[Site] = set()
    for check in validation.working:
        site = Site.parse(check.candidate.site)
        if site.with_(at=None) in taken:
            continue
        taken.add(site.with_(at=None))
        sign = 1.0 if check.effect.mean > 0 else -1.0
        if is_wide(site):
            if sum(is_wide(sites[0]) for sites, _ in found) < context.settings.sites:
                found.append(([site], sign))
            continue
        together = units.setdefault(f"{check.candidate.kind} {sign:+.0f}", [])
        if not together:
            found.append((together, sign))
        if len(together) < UNITS:
            together.append(site)
    return found


def _listed(sites: Sequence[Site]) -> str:
    return ", ".join(map(str, sites[:4])) + (f" … {len(sites)} in all" if len(sites) > 4 else "")


def _affordable(context: Context, proposals: Sequence[Proposal]) -> list[Proposal]:
    """The first proposals that half of the budget pays for."""
    settings = context.settings
    point = int(context.validation.prompts.lengths.sum()) + len(context.passages) * settings.search_tokens
    left = settings.budget // 2 // point
    if proposals and left < 1:
        raise StudyError(
            f"a budget of {settings.budget:,} tokens does not pay for one point of the search: one takes {point:,} "
            f"tokens of the half that is for it; give a budget of {2 * point:,} or more"
        )
    taken: list[Proposal] = []
    for proposal in proposals:
        if left < 1:
            break
        taken.append(proposal if len(proposal.coefficients) <= left else _cut(proposal, left))
        left -= len(proposal.coefficients)
    return taken


def _cut(proposal: Proposal, most: int) -> Proposal:
    return Proposal(proposal.method, proposal.site, proposal.scope, proposal.coefficients[:most], proposal.at)
