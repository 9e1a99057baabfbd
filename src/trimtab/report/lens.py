"""A lens as one HTML page: the grid of layers and positions, the details of a cell, the followed token's way up.

The page needs no network, follows the light or dark scheme of its reader, prints, and forbids by its own security
policy every script and style but the two it came with. It knows nothing of models: a `Lens` is all it reads.
"""

from __future__ import annotations

import base64
import hashlib
from importlib import resources
from typing import Any

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined

from trimtab.figures.colours import BINS, ramp_css
from trimtab.report.chart import log_chart, share_chart
from trimtab.values.lens import Lens, marked, visible
from trimtab.values.site import Site

MOST_ROWS = 5000
"""Rows of the table behind the grid; beyond that the last positions are shown and the rest is left to `to_frame()`."""


def lens_html(lens: Lens) -> str:
    """The page, as text: write it to a file and open it in a browser.

    >>> from trimtab.values.lens import Lens
    >>> one = np.ones((1, 1))
    >>> lens = Lens(
    ...     ("<b>",), [7], ("L0.resid_post",), [[[3]]], [[[0.5]]], {"3": "</script>"}, None, [3], one, one, one, one
    ... )
    >>> "</script>" in lens_html(lens).split("<table")[1].split("</table>")[0]
    False
    """
    environment = Environment(
        loader=PackageLoader("trimtab.report", "assets"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"marked": marked, "visible": visible, "percent": percent, "number": number}
    style, script = ramp_css() + _asset("lens.css"), _asset("lens.js")
    return environment.get_template("lens.html").render(
        lens=lens,
        title=f"{lens.method.capitalize()}: {visible(shortened(lens.prompt))}",
        style=style,
        script=script,
        policy=f"default-src 'none'; style-src 'sha256-{_digest(style)}'; script-src 'sha256-{_digest(script)}'",
        labels=labels(lens.sites),
        name=_common(lens.sites),
        bins=np.clip((lens.top_probabilities[..., 0] * BINS).astype(int), 0, BINS - 1).tolist(),
        data=_data(lens),
        charts=_charts(lens),
        rows=_table(lens),
        shown=_shown_positions(lens),
        made=_made(lens),
    )


def labels(sites: tuple[str, ...]) -> list[str]:
    """Short names of rows: `L12` where every layer has one site, else the sites themselves."""
    if _common(sites) is None:
        return list(sites)
    return [site.partition(".")[0] for site in sites]


def shortened(text: str, most: int = 60) -> str:
    """The text, or its beginning and an ellipsis."""
    return text if len(text) <= most else text[: most - 1] + "…"


def percent(p: float) -> str:
    """A probability to be read: 53%, 0.4%, <0.1%."""
    if p >= 0.0995:
        return f"{p:.0%}"
    return f"{p:.1%}" if p >= 0.0005 else "<0.1%"


def number(value: float) -> str:
    """A number to two decimals, without a minus before zero."""
    text = f"{value:.2f}"
    return "0.00" if text == "-0.00" else text


def _asset(name: str) -> str:
    return resources.files("trimtab.report").joinpath("assets", name).read_text(encoding="utf-8")


def _digest(text: str) -> str:
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def _common(sites: tuple[str, ...]) -> str | None:
    """The kind of site that all layers' rows share, each layer once; None where there are several."""
    parsed = [Site.parse(site) for site in sites]
    names = {site.name for site in parsed if site.layer is not None}
    return names.pop() if len(names) == 1 else None


def _data(lens: Lens) -> dict[str, Any]:
    """What the script shows on demand: words once, and for each cell its guesses and numbers."""
    index = {token: i for i, token in enumerate(lens.words)}
    order = [[index[str(token)] for token in pos] for row in lens.top_ids.tolist() for pos in row]
    share = [[float(f"{p:.4g}") for p in pos] for row in lens.top_probabilities.tolist() for pos in row]
    cells = zip(
        order,
        share,
        lens.rank.ravel().tolist(),
        *([float(f"{x:.4g}") for x in a.ravel().tolist()] for a in (lens.probability, lens.entropy, lens.kl)),
        strict=True,
    )
    return {
        "words": [visible(word) for word in lens.words.values()],
        "ids": [int(token) for token in lens.words],
        "sites": list(lens.sites),
        "tokens": [visible(token) for token in lens.tokens],
        "targets": [index[str(token)] for token in lens.targets.tolist()],
        "cells": [list(cell) for cell in cells],
    }


def _charts(lens: Lens) -> list[dict[str, Any]]:
    """The followed token's rank and probability through the layers, with a line for every position."""
    names = labels(lens.sites)
    most = max(10, int(lens.rank.max()))
    return [log_chart("rank", names, lens.rank.T, most), share_chart("probability", names, lens.probability.T)]


def _shown_positions(lens: Lens) -> range:
    many = max(1, MOST_ROWS // len(lens.sites))
    return range(max(0, len(lens.tokens) - many), len(lens.tokens))


def _table(lens: Lens) -> list[dict[str, object]]:
    first = _shown_positions(lens)[0]
    return [cell for cell in lens.cells() if isinstance(cell["pos"], int) and cell["pos"] >= first]


def _made(lens: Lens) -> list[tuple[str, str]]:
    """How the lens was made, as pairs to be read."""
    pairs = [("sites", f"{lens.sites[0]} to {lens.sites[-1]}"), ("edits", "; ".join(lens.edits) or "none")]
    if (p := lens.provenance) is not None:
        pairs += [("model", p.model), ("weights", p.model_hash[:16]), ("dtype", p.dtype), ("attention", p.attention)]
        pairs += [("BOS", p.bos), ("chat template", p.chat), ("made", p.created)]
        pairs += [("versions", ", ".join(f"{package} {version}" for package, version in p.versions.items()))]
    return [(name, text) for name, text in pairs if text]
