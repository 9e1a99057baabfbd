"""The colour scale of probabilities, in a light and a dark scheme, with text that can be read on each step.

Steps go from the page's own background to one saturated blue (or, on dark, to a bright one); the text on a step is the
darker or the lighter of two, whichever stands out more (WCAG 2.2, contrast ratio).
"""

from __future__ import annotations

RGB = tuple[int, int, int]

BINS = 10
LIGHT: tuple[RGB, ...] = ((250, 251, 253), (158, 202, 240), (8, 69, 148))
DARK: tuple[RGB, ...] = ((27, 31, 39), (29, 90, 160), (150, 214, 255))
INKS: tuple[RGB, RGB] = ((0, 0, 0), (255, 255, 255))


def ramp(ends: tuple[RGB, ...], n: int = BINS) -> list[RGB]:
    """`n` colours at equal distances along a line through `ends`."""
    colours = []
    for i in range(n):
        where = i / (n - 1) * (len(ends) - 1)
        at = min(int(where), len(ends) - 2)
        low, high, t = ends[at], ends[at + 1], where - at
        colours.append(tuple(round(a + t * (b - a)) for a, b in zip(low, high, strict=True)))
    return colours


def contrast(a: RGB, b: RGB) -> float:
    """The contrast ratio of two colours, from 1 to 21."""
    bright, dark = sorted((_luminance(a), _luminance(b)), reverse=True)
    return (bright + 0.05) / (dark + 0.05)


def ink(background: RGB) -> RGB:
    """The colour of text that stands out more on a background."""
    return max(INKS, key=lambda colour: contrast(colour, background))


def ramp_css() -> str:
    """A class for each step, `b0` to `b9`, in both schemes."""
    dark = _rules(DARK).replace("\n", "\n  ")
    return f"{_rules(LIGHT)}\n@media screen and (prefers-color-scheme: dark) {{\n  {dark}\n}}\n"


def _rules(ends: tuple[RGB, ...]) -> str:
    rules = (f".b{i} {{ background: {_css(c)}; color: {_css(ink(c))}; }}" for i, c in enumerate(ramp(ends)))
    return "\n".join(rules)


def _css(colour: RGB) -> str:
    return "#{:02x}{:02x}{:02x}".format(*colour)


def _luminance(colour: RGB) -> float:
    parts = [c / 255 for c in colour]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
