"""Parts of scores: some labels of an axis, one label fixed, an axis summed up. The address follows.

Pure functions behind `Scores.sel` and `Scores.over`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np

from trimtab.errors import SiteError, TrimtabError, nearest
from trimtab.values.scores import AnyScores, Label


def select(scores: AnyScores, labels: Mapping[str, Label | Sequence[Label] | slice]) -> AnyScores:
    """Scores at some labels: a single label fixes its axis, a list or slice of labels keeps the axis."""
    for dim, wanted in labels.items():
        axis = _axis(scores, dim)
        names = scores.coords[dim]
        if isinstance(wanted, (str, int, np.integer)):
            if dim == "example":
                raise TrimtabError(f"one example is still an axis: write sel(example=[{wanted}])")
            scores = _fixed(scores, dim, scores.array.take(_index(scores, dim, wanted), axis), str(wanted))
            continue
        if isinstance(wanted, slice):
            if wanted.step is not None:
                raise TrimtabError(f"a slice of labels has no step, got {wanted}: give a list of labels")
            start = 0 if wanted.start is None else _index(scores, dim, wanted.start)
            stop = len(names) if wanted.stop is None else _index(scores, dim, wanted.stop) + 1
            kept = list(range(start, stop))
        else:
            kept = [_index(scores, dim, label) for label in wanted]
        groups = scores.groups
        if dim == "example" and groups is not None:
            groups = tuple(groups[i] for i in kept)
        scores = scores.with_(
            array=scores.array.take(kept, axis),
            coords={**scores.coords, dim: tuple(names[i] for i in kept)},
            groups=groups,
        )
    return scores


def reduce(scores: AnyScores, dim: str, how: Literal["max", "mean", "sum"]) -> AnyScores:
    """Scores without an axis: its strongest label in each cell, or every example's mean or sum along it."""
    axis = _axis(scores, dim)
    if dim == "example":
        raise TrimtabError("scores keep every example: their mean is mean(), with interval()")
    if how not in ("max", "mean", "sum"):
        raise TrimtabError(f'how is "max", "mean" or "sum", got {how!r}{nearest(str(how), ("max", "mean", "sum"))}')
    site = _without(scores.site, dim)
    array = scores.array
    present = ~np.isnan(array)
    if how == "max":
        sizes = scores.strength()
        best = np.expand_dims(np.where(np.isnan(sizes), -np.inf, sizes).argmax(axis - 1), (0, axis))
        reduced = np.take_along_axis(array, best, axis).squeeze(axis)
    else:
        total, count = np.where(present, array, 0.0).sum(axis), present.sum(axis)
        reduced = np.where(count > 0, total / (np.maximum(count, 1) if how == "mean" else 1), np.nan)
    over = {**_mapping(scores.options.get("over")), dim: how}
    return scores.with_(
        array=reduced.astype(array.dtype),
        dims=tuple(name for name in scores.dims if name != dim),
        coords={name: names for name, names in scores.coords.items() if name != dim},
        site=site,
        options={**scores.options, "over": over},
    )


def apart(scores: AnyScores, dim: str) -> list[tuple[Label, AnyScores]]:
    """The scores at each label of an axis, with the label."""
    return [(label, select(scores, {dim: label})) for label in scores.coords[dim]]


def _fixed(scores: AnyScores, dim: str, array: np.ndarray, label: str) -> AnyScores:
    return scores.with_(
        array=array,
        dims=tuple(name for name in scores.dims if name != dim),
        coords={name: names for name, names in scores.coords.items() if name != dim},
        site=scores.site.replace(f"{{{dim}}}", label),
    )


def _without(site: str, dim: str) -> str:
    """An address without the part that an axis stands for: its units, its positions, or the end of its edges."""
    part = rf"\{{{re.escape(dim)}\}}"
    for written in (rf"\[{part}\]", rf"@{part}(?=$|->)", rf"->{part}$"):
        found, times = re.subn(written, "", site)
        if times and f"{{{dim}}}" not in found:
            return found
    raise SiteError(
        f'"{site}" has no meaning without {dim}: choose labels with sel({dim}=…); an axis of units, spans or receivers '
        "can be summed up"
    )


def _axis(scores: AnyScores, dim: str) -> int:
    if dim not in scores.dims:
        raise SiteError(
            f"these scores have no axis {dim}{nearest(dim, scores.dims)}: the axes are {', '.join(scores.dims)}"
        )
    return scores.dims.index(dim)


def _index(scores: AnyScores, dim: str, label: Label) -> int:
    labels = scores.coords[dim]
    if label not in labels:
        names = [str(name) for name in labels]
        shown = ", ".join(names if len(names) <= 12 else [*names[:11], "…", names[-1]])
        raise SiteError(f"no {dim} {label!r} in these scores{nearest(str(label), names)}: there are {shown}")
    return labels.index(label)


def _mapping(value: object) -> dict[str, object]:
    return dict(value) if isinstance(value, Mapping) else {}
