"""Panels of a screen: a map of layers for each kind of site, or its strongest units where a map would be too large."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from trimtab.report.figures.bars import Bar, bars
from trimtab.report.figures.heatmap import heatmap
from trimtab.report.figures.numbers import common_places, counted, estimate, fixed, interval_of, mean_of, places_for
from trimtab.report.figures.panel import Panel, Table
from trimtab.values.findings import Candidate, Estimate
from trimtab.values.scores import Scores

MOST_CELLS = 6000
"""Cells of a map; scores with more are shown by their strongest units."""
RANKED, OUTLINED = 30, 5
WIDE = 24
"""Columns from which on a map has the whole width of the page, and keeps its size on a small screen."""

_KINDS = {
    "resid_pre": "Residual stream",
    "resid_mid": "Residual stream after attention",
    "resid_post": "Residual stream",
    "attn_out": "Attention output",
    "mlp_out": "MLP output",
    "head": "Attention heads",
    "neuron": "MLP neurons",
    "embed": "Embedding",
}
_DIRECTIONS = {"denoise": "clean values put into the corrupt run", "noise": "corrupt values put into the clean run"}


def score_panels(scores: Sequence[Scores]) -> list[Panel]:
    """A panel for each kind of site that was scored; how is said in the captions where it differs among them."""
    scores = [part for whole in scores for part in by_span(whole)]
    panels, how = [_panel(part) for part in scores], made_by(scores)
    if len(how) <= 1:
        return panels
    said = (made_by([part]) for part in scores)
    return [replace(p, caption=f"{words[0]}. {p.caption}") for p, words in zip(panels, said, strict=True)]


def by_span(scores: Scores) -> list[Scores]:
    """Scores of units at spans, one for each span: layer × head is a map, layer × head × span is none."""
    if "span" not in scores.places or len(scores.places) < 3:
        return [scores]
    axis, spans = scores.dims.index("span"), scores.coords["span"]
    dims = tuple(dim for dim in scores.dims if dim != "span")
    coords = {dim: labels for dim, labels in scores.coords.items() if dim != "span"}
    return [
        scores.with_(
            array=scores.array.take(i, axis), dims=dims, coords=coords, site=scores.site.replace("{span}", str(span))
        )
        for i, span in enumerate(spans)
    ]


def made_by(scores: Sequence[Scores]) -> list[str]:
    """How scores were made, each way once: the method, what was put where, and the options."""
    return list(dict.fromkeys(_how(part) for part in scores))


def candidate_table(candidates: Sequence[Candidate]) -> Table:
    """What the screen proposes, the best of each kind first."""
    rows = [(c.site, c.kind, c.method, str(c.rank), fixed(c.score, 3, sign=True)) for c in candidates]
    columns = ("site", "kind", "method", "rank", "score")
    return Table("Candidates that the screen proposes", columns, tuple(rows), 3, (0,), "the method gave no score")


def _panel(scores: Scores) -> Panel:
    name = next((str(site.name) for site in scores.sites()), "") if scores.array.size else ""
    heading = _KINDS.get(name, name or "Scores")
    mean = scores.mean()
    if not np.isfinite(mean).any():
        return Panel(heading, f"{_over(scores)} No place here has a value.")
    places, layered = scores.places, "layer" in scores.places
    if layered and len(places) == 2 and mean.size <= MOST_CELLS:
        return _map(scores, heading, mean)
    if places == ("layer",) and mean.size <= 4 * RANKED:
        return _ranked(scores, heading, list(range(mean.size))[::-1], "One bar a layer, the last at the top.")
    order = np.argsort(-np.where(np.isfinite(mean), np.abs(mean), -1.0).ravel(), kind="stable")[:RANKED]
    order = [int(i) for i in order if np.isfinite(mean.ravel()[i])]
    return _ranked(scores, heading, order, f"The {len(order)} strongest of {mean.size:,}.")


def _map(scores: Scores, heading: str, mean: np.ndarray) -> Panel:
    layers, columns = scores.coords["layer"], next(dim for dim in scores.places if dim != "layer")
    grid = mean if scores.places[0] == "layer" else mean.T
    across = scores.coords[columns]
    names = [[scores.site.format(**{"layer": layer, columns: label}) for label in across] for layer in layers]
    svg = heatmap(
        grid,
        [str(layer) for layer in layers],
        [str(label) for label in across],
        names,
        about=f"{heading}: mean {scores.unit} by layer and {columns}; the table below holds the numbers",
        unit=scores.unit,
        across=columns,
        outlined=OUTLINED,
        kind="map large" if len(across) > WIDE else "map",
    )
    flat = np.abs(np.where(np.isfinite(mean), mean, 0.0)).ravel()
    strongest = [int(i) for i in np.argsort(-flat, kind="stable")[:OUTLINED] if flat[i] > 0]
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


def _ranked(scores: Scores, heading: str, order: list[int], note: str) -> Panel:
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


def _cell(scores: Scores, i: int) -> tuple[str, Estimate]:
    """The address of a cell of the flattened mean, and its estimate."""
    where = np.unravel_index(i, scores.array.shape[1:])
    labels = {dim: scores.coords[dim][int(at)] for dim, at in zip(scores.places, where, strict=True)}
    return scores.site.format(**labels), Estimate.of(scores.array[(slice(None), *where)], scores.groups)


def _facts(scores: Scores, order: list[int]) -> tuple[tuple[str, str], ...]:
    return tuple((site, estimate(value)) for site, value in (_cell(scores, i) for i in order))


def _how(scores: Scores) -> str:
    options = ", ".join(f"{name} {value}" for name, value in scores.options.items())
    how = [scores.method, _DIRECTIONS.get(scores.direction or "", ""), options]
    said = "; ".join(part for part in how if part) or "method not recorded"
    return f"{said[:1].upper()}{said[1:]}"


def _over(scores: Scores) -> str:
    return f"Mean of {counted(len(scores), 'example')}{_in(scores)}."


def _in(scores: Scores) -> str:
    return f", in {scores.unit}" if scores.unit else ""
