"""Colours of drawings and pages in a light and a dark scheme: as CSS variables for a page, or written out for a drawing
that stands alone.

Rules of drawings all begin with `.chart`, so that a drawing put into somebody else's page colours nothing but itself.
"""

from __future__ import annotations

import re
from functools import cache
from importlib import resources

from trimtab.figures.heatmap import diverging_css

DARK = "@media screen and (prefers-color-scheme: dark)"
"""Paper is light."""

PALETTE: dict[str, tuple[str, str]] = {
    "page": ("#fff", "#12151b"),
    "ink": ("#10141c", "#e8ebf0"),
    "soft": ("#5b6472", "#9aa4b2"),
    "rule": ("#dfe3ea", "#2c333f"),
    "card": ("#f6f7f9", "#1a1e26"),
    "accent": ("#c2410c", "#ffb454"),
    "line": ("#0b5cad", "#6cb6ff"),
    "bar": ("#4a8cce", "#3f7fc4"),
    "pale": ("#c3d9ef", "#29415e"),
    "band": ("#fbe3d6", "#3a2c17"),
    "mark": ("#fdeec2", "#4a3c12"),
    "good": ("#0b5c33", "#7fdca4"),
    "good-card": ("#e6f4ea", "#12291c"),
    "fair": ("#774600", "#ffcf70"),
    "fair-card": ("#fdf1d7", "#2e2510"),
    "bad": ("#8c1d18", "#ffb0a8"),
    "bad-card": ("#fbe9e7", "#341817"),
    "s0": ("#0b5cad", "#6cb6ff"),
    "s1": ("#00735a", "#4fd1a8"),
    "s2": ("#94399a", "#e09ce0"),
    "s3": ("#7d5a00", "#d9cf6a"),
    "s4": ("#1584bd", "#a5b4ff"),
    "s5": ("#4a5361", "#b6bfcc"),
}
"""Each colour of pages and drawings: on light, on dark."""


def palette_css() -> str:
    """The palette as variables of a page."""
    light, dark = (" ".join(f"--{name}: {pair[i]};" for name, pair in PALETTE.items()) for i in (0, 1))
    return f":root {{ color-scheme: light dark; {light} }}\n{DARK} {{\n  :root {{ {dark} }}\n}}\n"


def figure_css() -> str:
    """The rules of drawings in a page that has the palette."""
    return diverging_css() + _rules()


@cache
def standalone_css() -> str:
    """The rules of drawings with colours written out, for a drawing in a page that has no palette, or alone."""
    rules = [f"{rule.strip()} }}" for rule in _rules().split("}") if rule.strip()]
    light = "\n".join(_painted(rule, 0) for rule in rules)
    dark = "\n  ".join(_painted(rule, 1) for rule in rules if "var(" in rule)
    return f"{light}\n{DARK} {{\n  {dark}\n}}\n{diverging_css()}"


def _painted(rule: str, scheme: int) -> str:
    return re.sub(r"var\(--([\w-]+)\)", lambda match: PALETTE[match[1]][scheme], rule)


def _rules() -> str:
    return resources.files("trimtab.figures").joinpath("figure.css").read_text(encoding="utf-8")
