"""Searches, robustness, entanglement and ablation studies as sections of a page, and as pages of their own.

It reads the values; no model, no network.
"""

from __future__ import annotations

from collections.abc import Sequence

from trimtab.errors import TrimtabError
from trimtab.figures.numbers import counted
from trimtab.report.panels.panel import Panel
from trimtab.report.panels.searched import curve_panels, pareto_panel, picked_words, point_table
from trimtab.report.section import Section, asked_of, panels_of, sections_html, table_of
from trimtab.values.ablation_study import AblationStudy
from trimtab.values.entanglement import Entanglement
from trimtab.values.generations import Generations
from trimtab.values.propensity import Propensity
from trimtab.values.provenance import Provenance
from trimtab.values.robustness import Robustness
from trimtab.values.search import Search

Shown = Search | Robustness | Entanglement | AblationStudy | Propensity | Generations
KINDS = {
    Search: "Search",
    Robustness: "Robustness",
    Entanglement: "Entanglement",
    AblationStudy: "Ablation study",
    Propensity: "Propensity",
    Generations: "Generations",
}


def steering_html(values: Shown | Sequence[Shown]) -> str:
    """The page of one or several results, as text: write it to a file and open it in a browser.

    Raises TrimtabError for a value that has no section.

    >>> steering_html(Search.load("search.safetensors"))  # doctest: +SKIP
    """
    listed: list[Shown] = [values] if isinstance(values, Shown) else list(values)
    sections = [section(value) for value in listed]
    kinds = list(dict.fromkeys(KINDS[type(value)] for value in listed))
    return sections_html(sections, kind=" and ".join(kinds))


def section(value: Shown) -> Section:
    """The section of a result."""
    if isinstance(value, Search):
        return search_section(value)
    if isinstance(value, Robustness):
        return robustness_section(value)
    if isinstance(value, Entanglement):
        return entanglement_section(value)
    if isinstance(value, AblationStudy):
        return ablation_section(value)
    if isinstance(value, Propensity):
        return propensity_section(value)
    if isinstance(value, Generations):
        return generations_section(value)
    raise TrimtabError(f"a {type(value).__name__} has no section: there are those of {', '.join(KINDS.values())}")


def search_section(search: Search) -> Section:
    """The front, the lines along the coefficient, and every point."""
    panels = [pareto_panel(search), *curve_panels(search)]
    figure = search.plot()
    panels += [Panel(d.title, d.caption, d.svg) for d in figure.drawings[1:]]
    options = search.provenance.options if search.provenance is not None else {}
    asked = asked_of(
        {
            "task": options.get("task", ""),
            "points": f"{len(search.points):,}, by {search.how}",
            "on the front": f"{len(search.front):,}",
            "rule": search.rule,
            "picked": picked_words(search) or "none qualifies",
            "examples": f"{search.examples:,}",
        }
    )
    limits = (
        "The best of many points looks better than it is: judge the picked one on the test part.",
        "KL and capability are of our texts for searching, if none were given; a study's evaluation has others.",
    )
    front = search.to_frame().iloc[list(search.front)].drop(columns=["front", "allowed"])
    names = ["number", "method", "site", "scope"]
    whole = table_of(
        front.loc[:, [*names, *(c for c in front.columns if c not in names)]],
        "The front, the cheapest first",
        words=4,
        code=(2, 3),
    )
    tables = (whole, point_table(search))
    return Section(
        "Search", asked, tuple(panels), tables, limits, "", tuple(search.left_out.items()), search.provenance
    )


def robustness_section(found: Robustness) -> Section:
    """Methods against places, their agreement, and every coefficient."""
    asked = asked_of(
        {
            "task": found.task,
            "model": _model(found.provenance),
            "methods": ", ".join(found.methods),
            "places": f"{len(found.sites):,}",
            "coefficients": ", ".join(f"{c:g}" for c in found.coefficients),
            "examples": f"{len(found.groups):,}",
            "most KL": f"{found.limit:g} nats per token",
        }
    )
    tables = (
        table_of(found.summary(), f"At the largest coefficient within the limit, in {found.unit}", words=2, code=(1,)),
        table_of(found.to_frame(), f"Every coefficient, in {found.unit}", words=2, code=(1,)),
    )
    limits = (
        "The coefficient is chosen by its KL alone; another may do more at the same place.",
        "The largest of many effects is flattered by having been looked for; its interval is not widened for that.",
        "Vectors that agree in direction may still be wrong together: all of them were made from the same examples.",
        "To beat random directions says that a direction is better than chance, not that it is about the task.",
    )
    return _section(f"Robustness: {found.task}", asked, found, tables, limits, tuple(found.left_out.items()))


def entanglement_section(found: Entanglement) -> Section:
    """The matrix of interventions against tasks."""
    near = [trait for trait, well in zip(found.traits, found.matched_well, strict=True) if not well]
    asked = asked_of(
        {
            "interventions": ", ".join(found.traits),
            "tasks": ", ".join(found.tasks),
            "model": _model(found.provenance),
            "KL of each": f"{found.target:g} nats per token",
            "not matched": ", ".join(near),
            "random directions": f"{len(found.random_kl):,}" if found.random_kl else "",
        }
    )
    tables = (table_of(found.to_frame(), "Every effect, in standard deviations of the task's own number", words=2),)
    limits = (
        "An effect that is no larger than that of random directions of the same KL says nothing of its trait.",
        "Effects of an intervention that was made from a task's own examples are flattered on that task.",
        "Two traits may be entangled in the examples and not in the model: look at what their texts have in common.",
    )
    return _section("Entanglement", asked, found, tables, limits, tuple(found.left_out.items()))


def ablation_section(study: AblationStudy) -> Section:
    """The three numbers as more parts go."""
    asked = asked_of(
        {
            "task": study.task,
            "model": _model(study.provenance),
            "proposed by": study.proposed_by,
            "parts": ", ".join(study.sites[:8]) + (f" … {len(study.sites)} in all" if len(study.sites) > 8 else ""),
            "random sets": counted(study.draws, "draw"),
        }
    )
    tables = (table_of(study.to_frame(), "Changes, after − before, and how they differ from random parts'", words=3),)
    limits = (
        "Zero and the mean are values that the model may never see, and overstate; resampling is the kindest.",
        "Other parts can make up for what was ablated: a small change does not say that a part did nothing.",
        "The interval of a difference is over examples and takes the random sets as they were drawn.",
        "p is the share of sets, the located one among them, that change the number as much; 0.05 needs 20 draws.",
    )
    return _section(f"Ablation study: {study.task}", asked, study, tables, limits)


def propensity_section(found: Propensity) -> Section:
    """Log odds along the coefficient and the slopes of the examples."""
    asked = asked_of({"task": found.task, "model": _model(found.provenance), "found": str(found)})
    tables = (table_of(found.to_frame(), f"Log odds in {found.unit}, and normalised probability", words=0),)
    limits = ("A slope is of a line: where the number bends back, the line hides it.",)
    return _section(f"Propensity: {found.task}", asked, found, tables, limits)


def generations_section(found: Generations) -> Section:
    """Measures of the texts before and after, and the texts."""
    asked = asked_of({"task": found.task, "model": _model(found.provenance), "texts": f"{len(found):,}"})
    texts = found.texts().loc[:, ["prompt", "before", "after"]]
    tables = (
        table_of(found.to_frame(), "Measures of the texts", words=2),
        table_of(texts, "The texts", words=3),
    )
    limits = ("No measure reads a text as a person does: look at the texts themselves.",)
    return _section(f"Generations: {found.task}", asked, found, tables, limits)


def _section(
    title: str,
    asked: tuple[tuple[str, str], ...],
    value: Robustness | Entanglement | AblationStudy | Propensity | Generations,
    tables: tuple,
    limits: tuple[str, ...],
    left_out: tuple[tuple[str, str], ...] = (),
) -> Section:
    return Section(title, asked, panels_of(value.plot()), tables, limits, "", left_out, value.provenance)


def _model(provenance: Provenance | None) -> str:
    return "" if provenance is None else provenance.model
