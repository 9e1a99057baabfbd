"""Figure: one or more drawings with their words, to be shown in a notebook, put into a page, or saved as a file.

What it makes is complete in itself: colours for light and dark are in it, nothing is fetched and nothing is run.
"""

from __future__ import annotations

import os
import re
import secrets
from dataclasses import dataclass
from functools import cached_property
from html import escape
from pathlib import Path

from trimtab.errors import FileError, TrimtabError, nearest
from trimtab.figures.style import DARK, figure_css, palette_css, standalone_css
from trimtab.figures.svg import ZOOM, element, legible, shortened, text, title

PAPER, GAP, MARGIN, HEAD = 960.0, 24.0, 14.0, 22.0
KINDS = (".svg", ".html")

_SVG = re.compile(r'<svg ([^>]*)>(.*)</svg>', re.DOTALL)  # fmt: skip
_BOX = re.compile(r'viewBox="0 0 ([\d.]+) ([\d.]+)"')


@dataclass(frozen=True)
class Drawing:
    """One drawing: SVG text as the functions of this room make it, a title to stand above and a caption to stand
    below."""

    svg: str
    title: str = ""
    caption: str = ""

    @property
    def size(self) -> tuple[float, float]:
        """Width and height, in its own pixels."""
        found = _BOX.search(self.svg)
        if found is None:
            raise TrimtabError("a drawing is the SVG that trimtab.figures makes, with a viewBox from 0 0")
        return float(found[1]), float(found[2])


@dataclass(frozen=True)
class Figure:
    """Drawings that belong together.

    In a notebook it shows itself. `svg` is one picture with all drawings, `html` a whole page; `save` writes either.

    >>> from trimtab.figures import Bar, Value, bars
    >>> figure = Figure("Effects", (Drawing(bars([Bar("L3.head[1]", Value(0.5))], about="effects", unit="logits")),))
    >>> figure.svg[:39]
    '<svg xmlns="http://www.w3.org/2000/svg"'
    """

    title: str
    drawings: tuple[Drawing, ...]
    caption: str = ""

    @cached_property
    def svg(self) -> str:
        """One SVG picture, complete in itself: the drawings beside and below each other, light and dark."""
        placed, width, height = self._placed()
        parts = [
            element("style", escape(standalone_css(), quote=False)),
            title(self.title),
            element("rect", width=width, height=height, class_="ground"),
        ]
        if self.title:
            parts.append(text(shortened(self.title, width - 2 * MARGIN), MARGIN, MARGIN + 12, class_="heading"))
        for drawing, x, y in placed:
            if drawing.title:
                parts.append(text(shortened(drawing.title, drawing.size[0]), x, y + 12, class_="strong"))
            parts.append(_nested(drawing, x, y + HEAD * bool(drawing.title)))
        size = {"width": width * ZOOM, "height": height * ZOOM, "viewbox": f"0 0 {width:g} {height:g}"}
        xmlns = "http://www.w3.org/2000/svg"
        return element("svg", *parts, xmlns=xmlns, **size, class_="chart alone", role="img", aria_label=self.title)

    def body(self) -> str:
        """The drawings as HTML for a page that has `style.palette_css()` and `style.figure_css()`."""
        parts = []
        for drawing in self.drawings:
            head = f"<h4>{escape(legible(drawing.title))}</h4>" if drawing.title else ""
            foot = f"<figcaption>{escape(legible(drawing.caption))}</figcaption>" if drawing.caption else ""
            parts.append(f'<figure class="one">{head}<div class="drawing">{drawing.svg}</div>{foot}</figure>')
        foot = f'<p class="caption">{escape(legible(self.caption))}</p>' if self.caption else ""
        return f'<div class="drawings">{"".join(parts)}</div>{foot}'

    @property
    def html(self) -> str:
        """A whole page."""
        name = escape(legible(self.title))
        return (
            f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{name}</title>'
            '<meta name="viewport" content="width=device-width, initial-scale=1">'
            f'<style>{palette_css()}{figure_css()}{_PAGE}</style></head><body class="trimtab">\n'
            f"<h3>{name}</h3>{self.body()}\n</body></html>\n"
        )

    def with_details(self, words: str, details: str) -> str:
        """What a notebook shows of a value: the figure, and under it HTML to unfold, such as a table.

        >>> "<summary>The numbers</summary>" in Figure("Effects", ()).with_details("The numbers", "<table></table>")
        True
        """
        unfolded = f"<details><summary>{escape(words)}</summary>{details}</details>"
        return f"<div>{self._repr_html_()}{unfolded}</div>"

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write it as .svg (one picture) or .html (a page), whole or not at all.

        Raises TrimtabError for another ending, FileError where the file cannot be written.
        """
        path = Path(path)
        if path.suffix.lower() not in KINDS:
            raise TrimtabError(
                f"{path.name}: a figure is saved as .svg or .html{nearest(path.suffix, KINDS)}; save the .svg and turn "
                "it into another format with a program such as rsvg-convert or a browser"
            )
        write_text(path, self.svg if path.suffix.lower() == ".svg" else self.html)

    def _placed(self) -> tuple[list[tuple[Drawing, float, float]], float, float]:
        """Where each drawing has its corner, in lines as wide as a page; and the size of it all."""
        x, y, low, right = MARGIN, MARGIN + HEAD * bool(self.title), MARGIN, MARGIN
        placed = []
        for drawing in self.drawings:
            wide, high = drawing.size
            if x > MARGIN and x + wide > PAPER:
                x, y = MARGIN, low + GAP
            placed.append((drawing, x, y))
            right, low = max(right, x + wide), max(low, y + high + HEAD * bool(drawing.title))
            x += wide + GAP
        return placed, right + MARGIN, max(low, y) + MARGIN

    def _repr_svg_(self) -> str:
        return self.svg

    def _repr_html_(self) -> str:
        head = f"<b>{escape(legible(self.title))}</b>" if self.title else ""
        return f'<div class="trimtab"><style>{_SHOWN}{standalone_css()}</style>{head}{self.body()}</div>'


def write_text(path: str | os.PathLike[str], words: str) -> None:
    """Write text as UTF-8, whole or not at all. FileError where it cannot."""
    path = Path(path)
    partial = path.with_name(f".{path.name}.{secrets.token_hex(4)}.partial")
    try:
        partial.write_text(words, encoding="utf-8")
        partial.replace(path)
    except OSError as error:
        raise FileError(
            f"cannot write {path}: {error.strerror or error}. Check that its folder exists and can be written"
        ) from error
    finally:
        partial.unlink(missing_ok=True)


_LAYOUT = """
.trimtab .drawings { display: flex; flex-wrap: wrap; gap: .5rem 1.75rem; align-items: flex-start; }
.trimtab figure { margin: .25rem 0; min-width: 0; max-width: 100%; }
.trimtab h4 { margin: .3rem 0; font-size: .95rem; }
.trimtab .drawing { overflow-x: auto; }
.trimtab figcaption, .trimtab .caption { font-size: .86rem; max-width: 46rem; opacity: .8; }
"""
_PAGE = (
    _LAYOUT
    + """body { margin: 1.25rem auto; padding: 0 1rem; max-width: 64rem; background: var(--page); color: var(--ink);
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; }
.chart.large { min-width: 0; }
"""
)
# a notebook's page may be light while the system is dark: what is shown there brings its own ground
_SHOWN = (
    _LAYOUT
    + f""".trimtab {{ background: #fff; color: #10141c; padding: .5rem .75rem; border-radius: 6px;
  font-family: system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; }}
{DARK} {{ .trimtab {{ background: #12151b; color: #e8ebf0; }} }}
"""
)


def _nested(drawing: Drawing, x: float, y: float) -> str:
    found = _SVG.fullmatch(drawing.svg)
    if found is None:
        raise TrimtabError("a drawing is the SVG that trimtab.figures makes: one <svg> element")
    kind = re.search(r'class="([^"]*)"', found[1])
    about = re.search(r'aria-label="([^"]*)"', found[1])
    # a group and not an <svg>: the sizes that rules give to whole drawings are not for parts of one
    return (
        f'<g class="{kind[1] if kind else "chart"}" transform="translate({x:g} {y:g})"'
        f"{f' aria-label={chr(34)}{about[1]}{chr(34)}' if about else ''}>{found[2]}</g>"
    )
