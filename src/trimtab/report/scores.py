"""Scores as one HTML page: the figure, the strongest places with their intervals, and how to make them again.

One page for every locating method: it reads what the scores say of themselves, needs no model and no network.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from typing import Any

import numpy as np

from trimtab.errors import TrimtabError
from trimtab.figures.numbers import NONE, common_places, counted, fixed, interval_of, mean_of, probability, share
from trimtab.report.made import made, page
from trimtab.report.panels.panel import Panel, Table
from trimtab.values.numbers import write_runs
from trimtab.values.plots import WIDE, about, pattern
from trimtab.values.scores import AnyScores
from trimtab.values.tables import strongest

SHOWN = 20
"""Places that the table names."""
COMMAND = "command"
"""The option of a provenance that holds the command line the scores were made with."""

_ONE_EACH = (
    "Intervals are of one place each: among many places, some lie away from zero by chance. Hold the strongest against "
    "random places (trimtab run, stage validate) before relying on them."
)
_PROPOSED = (
    "Scores of gradients, magnitudes and probes propose places; whether changing them changes the behaviour is for an "
    "intervention to say."
)
LIMITS = (
    "A score is about the prompts, the metric and the direction it was measured with, and about no others.",
    _ONE_EACH,
    _PROPOSED,
)


def scores_html(scores: AnyScores | Sequence[AnyScores]) -> str:
    """The page, as text; several scores stand below each other, and those over the same axes are compared.

    >>> from trimtab.values.scores import Scores
    >>> page = scores_html(Scores(np.ones((2, 3)), ("example", "layer"), {}, "L{layer}.mlp_out", method="patching"))
    >>> "patching" in page
    True
    """
    several = list(scores) if isinstance(scores, Sequence) else [scores]
    if not several:
        raise TrimtabError("a page of scores needs at least one: scores_html(scores)")
    first = _title(several[0])
    return page(
        "scores.html",
        title=first if len(several) == 1 else f"{first} and {counted(len(several) - 1, 'other')}",
        all=[_one(part) for part in several],
        compared=comparison(several),
        limits=LIMITS,
        dash=NONE,
    )


def comparison(several: Sequence[AnyScores], k: int = 10) -> Table | None:
    """How every two scores over the same axes agree; None where no two can be compared."""
    rows = []
    for one, other in combinations(several, 2):
        try:
            found = one.compare(other, k)
        except TrimtabError:
            continue
        shared = f"{round(found.overlap * found.k)} of {found.k}"
        numbers = (fixed(found.rank_correlation, 2), shared, share(found.overlap), probability(found.p_value))
        rows.append((_title(one), _title(other), *numbers, f"{found.cells:,}"))
    columns = ("scores", "and", "rank correlation", "shared top", "overlap", "p", "places")
    return Table("How the rankings agree", columns, tuple(rows), 2) if rows else None


def python(scores: AnyScores) -> str:
    """Python code that makes such scores again, as far as they say how; empty where the method is not known."""
    task = scores.options.get("task")
    if not scores.method.isidentifier() or not isinstance(task, str):
        return ""
    model = scores.provenance.model if scores.provenance is not None else "smollm2-135m-instruct"
    given = {"direction": scores.direction} if scores.direction else {}
    given |= {name: value for name, value in scores.options.items() if name not in ("task", "over")}
    options = "".join(f", {name}={value!r}" for name, value in given.items() if _plain(value))
    name = task.split("[")[0].split(" ")[0]
    return (
        "import trimtab\n"
        "from trimtab import locate\n"
        "from trimtab.tasks import builtin, fit\n\n"
        f"lm = trimtab.load({model!r})\n"
        f"task = fit.fit(lm, builtin.task({name!r})).task.take({len(scores)})\n"
        f"scores = locate.{scores.method}(lm, task, {sites(scores)!r}{options})\n"
    )


def sites(scores: AnyScores) -> str | list[str]:
    """The places of scores as a method is told them: a selection of layers where they are a map, else every address."""
    layers = scores.coords.get("layer")
    if layers is None or "->" in scores.site or not scores.site.startswith("L{layer}."):
        return [str(site) for site in scores.sites()]
    units = [dim for dim in scores.places if dim not in ("layer", "span")]
    text = scores.site.replace("{layer}", write_runs(tuple(int(layer) for layer in layers)))
    for dim in units:
        text = text.replace(f"[{{{dim}}}]", "")
    return text.replace("@{span}", "")


def _plain(value: object) -> bool:
    """Whether an option can be given as it was recorded: numbers and words can."""
    if isinstance(value, (list, tuple)):
        return all(isinstance(part, (str, int, float)) for part in value)
    return isinstance(value, (str, int, float)) and value == value


def _one(scores: AnyScores) -> dict[str, Any]:
    figure = scores.plot()
    span = "two" if len(figure.drawings) == 1 else "one"
    wide = (
        max((len(names) for dim, names in scores.coords.items() if dim not in ("example", "layer")), default=0) > WIDE
    )
    panels = [
        Panel(d.title, d.caption, d.svg, span="all" if wide and 'class="chart map' in d.svg else span)
        for d in figure.drawings
    ]
    options = dict(scores.provenance.options) if scores.provenance is not None else {}
    command = options.pop(COMMAND, "")
    provenance = scores.provenance.with_(options=options) if scores.provenance is not None else None
    return {
        "title": _title(scores),
        "asked": _asked(scores),
        "panels": panels,
        "about": about(scores),
        "table": _table(scores),
        "command": command,
        "python": python(scores),
        "options": dict(scores.options),
        "made": made(provenance),
    }


def _title(scores: AnyScores) -> str:
    return f"{scores.method or 'scores'}: {pattern(scores)}"


def _asked(scores: AnyScores) -> list[tuple[str, str]]:
    missing = int(np.isnan(scores.array).sum())
    groups = f" in {counted(len(set(scores.groups)), 'group')}" if scores.groups is not None else ""
    pairs = [
        ("task", str(scores.options.get("task", ""))),
        ("model", scores.provenance.model if scores.provenance is not None else ""),
        ("examples", f"{len(scores):,}{groups}"),
        ("places", f"{scores.mean().size:,}"),
        ("unit", scores.unit),
        ("direction", scores.direction or ""),
        ("not defined", counted(missing, "value") if missing else ""),
    ]
    return [(name, text) for name, text in pairs if text]


def _table(scores: AnyScores) -> Table:
    cells, size = strongest(scores, SHOWN), scores.mean().size
    places = common_places(value for _, _, value, _ in cells)
    rows = [(site, mean_of(value, places=places), interval_of(value, places), f"{n:,}") for _, site, value, n in cells]
    unit = f", in {scores.unit}" if scores.unit else ""
    which = f"The {len(cells)} strongest of {size:,} places" if len(cells) < size else "Every place"
    columns = ("site", "mean", "95 %", "n")
    why = "fewer than two groups of examples"
    return Table(f"{which}: mean over examples{unit}", columns, tuple(rows), 1, (0,), why)
