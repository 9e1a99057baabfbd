"""SVG as text: elements whose attributes and words are escaped, and room for words on a drawing.

Colours come from classes, never from style attributes: the page's security policy forbids those.
"""

from __future__ import annotations

from html import escape

SMALL = 11.5
"""The size of letters in drawings, in their own pixels."""
ZOOM = 1.1
"""How much larger drawings are shown where there is room."""

_NAMES = {"class_": "class", "viewbox": "viewBox"}


def element(name: str, *inside: str, **attributes: object) -> str:
    """An element around SVG that is already text; `class_` and `text_anchor` become class and text-anchor.

    >>> element("rect", title("1 < 2"), x=1.5, y=2.0, class_="bar")
    '<rect x="1.5" y="2" class="bar"><title>1 &lt; 2</title></rect>'
    """
    written = "".join(
        f' {_NAMES.get(key, key.replace("_", "-"))}="{_value(value)}"'
        for key, value in attributes.items()
        if value is not None
    )
    return f"<{name}{written}>{''.join(inside)}</{name}>"


def title(words: str) -> str:
    """What a browser shows where the pointer rests on the element around it."""
    return element("title", escape(legible(words), quote=False))


def text(words: str, x: float, y: float, *inside: str, **attributes: object) -> str:
    """Words at a place."""
    return element("text", escape(legible(words), quote=False), *inside, x=x, y=y, **attributes)


def span(words: str, **attributes: object) -> str:
    """More words in the same line, inside of `text`."""
    return element("tspan", escape(legible(words), quote=False), **attributes)


def line(x1: float, y1: float, x2: float, y2: float, *inside: str, **attributes: object) -> str:
    """A straight line."""
    return element("line", *inside, x1=x1, y1=y1, x2=x2, y2=y2, **attributes)


def path(points: list[tuple[float, float]], **attributes: object) -> str:
    """A line through points."""
    return element("path", d="M" + "L".join(f"{_value(x)} {_value(y)}" for x, y in points), **attributes)


def drawing(width: float, height: float, about: str, *parts: str, kind: str = "") -> str:
    """The whole drawing, which shrinks where there is less room; `about` is read out in its place."""
    size = {"width": width * ZOOM, "height": height * ZOOM, "viewbox": f"0 0 {_value(width)} {_value(height)}"}
    return element("svg", *parts, **size, class_=f"chart {kind}".strip(), role="img", aria_label=about)


def room(words: str, mono: bool = False) -> float:
    """About how many pixels words take at the size of drawings."""
    return len(legible(words)) * SMALL * (0.62 if mono else 0.56)


def shortened(words: str, most: float, mono: bool = False) -> str:
    """Words that fit into so many pixels, the middle left out where they do not: both ends of an address tell."""
    words = legible(words)
    if room(words, mono) <= most:
        return words
    letters = max(3, int(most / (SMALL * (0.62 if mono else 0.56))))
    head = (letters - 1) * 3 // 5
    return f"{words[:head]}…{words[len(words) - (letters - 1 - head) :]}"


def legible(words: object) -> str:
    r"""Text whose control and direction characters are written out; line ends and tabs stay.

    >>> legible("a\u202eb\n\x1b")
    'a\\u202eb\n\\x1b'
    """
    return "".join(
        char
        if char in "\n\t\u00a0" or char.isprintable()
        else f"\\x{ord(char):02x}"
        if ord(char) < 256
        else f"\\u{ord(char):04x}"
        for char in str(words)
    )


def _value(value: object) -> str:
    if isinstance(value, float):
        return f"{round(value, 2) + 0.0:.2f}".rstrip("0").rstrip(".")  # + 0.0: no −0
    return escape(legible(value))
