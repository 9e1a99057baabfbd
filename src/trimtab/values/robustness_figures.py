"""Figures of robustness, entanglement and ablation studies: which numbers go into which drawing. Pure functions."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from trimtab.figures.figure import Drawing, Figure
from trimtab.figures.heatmap import heatmap
from trimtab.figures.lines import SERIES, Curve, Mark, curves
from trimtab.figures.numbers import Value, counted

if TYPE_CHECKING:
    from trimtab.values.ablation_study import AblationStudy
    from trimtab.values.entanglement import Entanglement
    from trimtab.values.robustness import Robustness


def robustness_figure(found: Robustness) -> Figure:
    """Methods against sites: effect, anti-steerable share; methods against methods: cosine."""
    n, m = len(found.sites), len(found.methods)
    effect = np.array([[found.effect(i, j).mean for j in range(n)] for i in range(m)])
    anti = np.array([[found.anti_steerable(i, j).mean for j in range(n)] for i in range(m)])
    drawings = [
        Drawing(
            _map(effect, found.methods, found.sites, "effect", found.unit, "site"),
            "Effect",
            f"At the largest coefficient within {found.limit:g} nats of KL per token.",
        ),
        Drawing(
            _map(anti, found.methods, found.sites, "anti-steerable", "share", "site", 1.0),
            "Anti-steerable examples",
            "The share whose number falls as the coefficient grows.",
        ),
    ]
    if m > 1:
        svg = _map(found.agreement(), found.methods, found.methods, "cosine", "cosine", "method", 1.0)
        drawings.append(Drawing(svg, "Agreement of the vectors", "Cosine, averaged over the places."))
    return Figure(f"Robustness: {found.task}", tuple(drawings))


def entanglement_figure(found: Entanglement) -> Figure:
    """Interventions against tasks, and below them the size of what random directions do."""
    matrix, rows = found.matrix, found.traits
    words = (
        f"Every intervention at {found.target:g} nats of KL per token; in standard deviations of each task's number."
    )
    if found.random_kl:
        matrix, rows = np.vstack([matrix, found.chance]), (*rows, "random (size)")
        words += f" The last row is the mean size of the effect of {counted(len(found.random_kl), 'random direction')}."
    svg = _map(matrix, rows, found.tasks, "effect", "standard deviations", "task", None, "intervention")
    return Figure("Entanglement", (Drawing(svg, "Effect of each intervention on each task", words),))


def ablation_figure(study: AblationStudy) -> Figure:
    """A drawing for each number: what becomes of it as more parts go, located and random."""
    drawings = []
    for number in study.numbers:
        lines = []
        for kind in study.kinds[: SERIES // 2]:
            marks = tuple(Mark(float(k), study.change(number.name, kind, k)) for k in study.k)
            lines.append(Curve(f"located, {kind}", marks))
            draws = {k: study.draw_means(number.name, kind, k) for k in study.k}
            marks = tuple(Mark(float(k), Value(*map(float, (d.mean(), d.min(), d.max())))) for k, d in draws.items())
            lines.append(Curve(f"random, {kind}", marks))
        svg = curves(
            lines,
            about=f"Change of {number.name} as more parts are ablated",
            x_axis="parts ablated",
            y_axis=f"change, {number.unit}",
        )
        sets = counted(study.draws, "random set")
        words = f"After − before; of {sets} of the same kind and layers the mean, the least and the most."
        drawings.append(Drawing(svg, number.name, words))
    return Figure(f"Ablation study: {study.task}", tuple(drawings))


def _map(
    values: np.ndarray,
    rows: tuple[str, ...],
    columns: tuple[str, ...],
    what: str,
    unit: str,
    across: str,
    most: float | None = None,
    down: str = "method",
) -> str:
    """A map with the first row at the top."""
    names = [[f"{row}, {column}" for column in columns] for row in rows]
    return heatmap(
        values[::-1],
        rows[::-1],
        columns,
        names[::-1],
        about=f"{what} by {down} and {across}",
        unit=unit,
        across=across,
        down=down,
        outlined=0,
        most=most,
    )
