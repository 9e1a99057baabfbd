"""Panels of a screen: a map of layers for each kind of site, or its strongest units where a map would be too large."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from trimtab.figures.bars import Bar, bars
from trimtab.figures.numbers import common_places, counted, estimate, fixed, interval_of, mean_of, places_for
from trimtab.report.panels.panel import Panel, Table
from trimtab.values.findings import Candidate, Estimate
from trimtab.values.plots import DIRECTIONS, MOST_CELLS, OUTLINED, RANKED, WIDE, map_svg
from trimtab.values.ranks import ranked
from trimtab.values.scores import AnyScores
from trimtab.values.site import Edge, Site
from trimtab.values.slices import apart

_KINDS = {
    "resid_pre": "Residual stream",
    "resid_mid": "Residual stream after attention",
    "resid_post": "Residual stream",
    "attn_out": "Attention output",
    "mlp_out": "MLP output",
    "head": "Attention heads",
    "attn_neuron": "Attention neurons",
    "neuron": "MLP neurons",
    "embed": "Embedding",
}


def score_panels(scores: Sequence[AnyScores]) -> list[Panel]:
    """A panel for each kind of site that was scored, and each span of units; what differs among panels of one kind is
    in their titles, and how they were scored, where that differs, in all captions."""
    parts = [part for whole in scores for part in by_span(whole)]
    panels, scores = [_panel(part) for _, part in parts], [part for _, part in parts]
    methods = {p.title: {s.method for q, s in zip(panels, scores, strict=True) if q.title == p.title} for p in panels}
    told = []
    for panel, (span, part) in zip(panels, parts, strict=True):
        by = part.method.replace("_", " ") if len(methods[panel.title]) > 1 else ""
        title = ", ".join(word for word in (panel.title, span and f"@{span}", by) if word)
        told.append(replace(panel, title=title))
    if len(made_by(scores)) <= 1:
        return told
    said = (made_by([part]) for part in scores)
    return [replace(p, caption=f"{words[0]}. {p.caption}") for p, words in zip(told, said, strict=True)]


def by_span(scores: AnyScores) -> list[tuple[str, AnyScores]]:
    """Scores of units at spans, one for each span with its name: layer × head is a map, layer × head × span is none."""
    if "span" not in scores.places or len(scores.places) < 3:
        return [("", scores)]
    return [(str(span), part) for span, part in apart(scores, "span")]


def made_by(scores: Sequence[AnyScores]) -> list[str]:
    """How scores were made, each way once: the method, what was put where, and the options."""
    return list(dict.fromkeys(_how(part) for part in scores))


def candidate_table(candidates: Sequence[Candidate]) -> Table:
    """What the screen proposes, the best of each kind first."""
    rows = [(c.site, c.kind, c.method, str(c.rank), fixed(c.score, 3, sign=True)) for c in candidates]
    columns = ("site", "kind", "method", "rank", "score")
    return Table("Candidates that the screen proposes", columns, tuple(rows), 3, (0,), "the method gave no score")


def _panel(scores: AnyScores) -> Panel:
    first = next(scores.sites()) if scores.array.size else None
    name = first.name if isinstance(first, Site) else ""
    heading = "Edges" if isinstance(first, Edge) else _KINDS.get(name, name or "Scores")
    mean = scores.mean()
    if not np.isfinite(mean).any():
        return Panel(heading, f"{_over(scores)} No place here has a value.")
    places, layered = scores.places, "layer" in scores.places
    if layered and len(places) == 2 and mean.size <= MOST_CELLS:
        return _map(scores, heading, mean)
    if places == ("layer",) and mean.size <= 4 * RANKED:
        return _ranked(scores, heading, list(range(mean.size))[::-1], "One bar a layer, the last at the top.")
    order = ranked(scores.strength().ravel())[:RANKED].tolist()
    return _ranked(scores, heading, order, f"The {len(order)} strongest of {mean.size:,}.")


def _map(scores: AnyScores, heading: str, mean: np.ndarray) -> Panel:
    layers, columns = scores.coords["layer"], next(dim for dim in scores.places if dim != "layer")
    grid = mean if scores.places[0] == "layer" else mean.T
    across = scores.coords[columns]
    svg = map_svg(scores, heading, "; the table below holds the numbers")
    flat = np.abs(np.where(np.isfinite(mean), mean, 0.0)).ravel()
    strongest = [
        i for i in ranked(scores.strength().ravel())[:OUTLINED].tolist() if flat[i] > 0 or scores.order != "abs"
    ]
    places = places_for(float(flat.max()))
    table = Table(
        f"{heading}: mean over examples{_in(scores)}",
        ("layer", *(str(label) for label in across)),
        tuple(
            (str(layer), *(fixed(float(v), places, sign=True) for v in row))
            for layer, row in zip(layers, grid, strict=True)
        ),
        why="no example has a value there",
    )
    span = "all" if len(across) > WIDE else "one"
    return Panel(heading, f"{_over(scores)} Framed: the strongest.", svg, _facts(scores, strongest), table, span)


def _ranked(scores: AnyScores, heading: str, order: list[int], note: str) -> Panel:
    cells = [_cell(scores, i) for i in order]
    places = common_places(value for _, value in cells)
    table = Table(
        f"{heading}{_in(scores)}",
        ("site", "mean", "95 %"),
        tuple((site, mean_of(value, places=places), interval_of(value, places)) for site, value in cells),
        code=(0,),
        why="fewer than two examples to resample",
    )
    svg = bars(
        [Bar(site, value) for site, value in cells],
        about=f"{heading}: {note} The table below holds the numbers",
        unit=scores.unit,
    )
    return Panel(heading, f"{_over(scores)} {note}", svg, (), table, span="two")


def _cell(scores: AnyScores, i: int) -> tuple[str, Estimate]:
    """The address of a cell of the flattened mean, and its estimate."""
    where = np.unravel_index(i, scores.array.shape[1:])
    labels = {dim: scores.coords[dim][int(at)] for dim, at in zip(scores.places, where, strict=True)}
    return scores.site.format(**labels), Estimate.of(scores.array[(slice(None), *where)], scores.groups)


def _facts(scores: AnyScores, order: list[int]) -> tuple[tuple[str, str], ...]:
    return tuple((site, estimate(value)) for site, value in (_cell(scores, i) for i in order))


def _how(scores: AnyScores) -> str:
    options = ", ".join(f"{name} {value}" for name, value in scores.options.items())
    how = [scores.method, DIRECTIONS.get(scores.direction or "", ""), options]
    said = "; ".join(part for part in how if part) or "method not recorded"
    return f"{said[:1].upper()}{said[1:]}"


def _over(scores: AnyScores) -> str:
    return f"Mean of {counted(len(scores), 'example')}{_in(scores)}."


def _in(scores: AnyScores) -> str:
    return f", in {scores.unit}" if scores.unit else ""
